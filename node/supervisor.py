"""`atoll up`: the daemon's first process. Starts the p2p service and the trainer, keeps them alive, ends them together.

Losing the service does not stop the trainer, losing the trainer does not drop the service; each is started again after
a pause. When that has no point any more, the daemon ends with the reason. SIGTERM, SIGINT and SIGHUP drain: the ranks
checkpoint and stop, the service says goodbye; a second signal ends everything at once. Imports neither torch, hivemind
nor libp2p. Called by the `up` command; answers `daemon_api`.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from atoll.node import exit_codes
from atoll.node.backoff import Backoff
from atoll.node.child import Child
from atoll.node.errors import ChildError, HomeError
from atoll.node.exit_codes import ExitCode
from atoll.node.ipc_async import Connection, Server
from atoll.node.keeper import Keeper, Role
from atoll.node.launch import Launch, Start
from atoll.node.logs import RotatingLog
from atoll.node.narrator import Narrator, evaluation_line, round_line
from atoll.node.paths import write_durably
from atoll.node.run_source import read_manifest
from atoll.node.service_link import ServiceLink
from atoll.node.status import TrainerHistory
from atoll.node.terminal import one_line
from atoll.protocol.errors import AtollError

TRAINER_GRACE_S = 5.0
SERVICE_GRACE_S = 25.0
"""A voter without whom the others are no quorum stays until they have removed it, 20 s at most, then says goodbye."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOG_BYTES_PER_MB = 1 << 20

log = logging.getLogger(__name__)


class Supervisor:
    """One life of a daemon, `run` from start to end. The caller holds the home's lock."""

    def __init__(
        self, launch: Launch, say: Callable[[str], None], warnings: Sequence[str] = (),
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self.launch = launch
        self.trainer = TrainerHistory()
        self.started = time.monotonic()
        self.link = ServiceLink(launch.home.service_socket, self._hear, self._look)
        self._say = say
        self._warnings = list(warnings)
        self._narrator = Narrator()
        self._logs: dict[str, RotatingLog] = {}
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._manifest_held = asyncio.Event()
        self._failure: AtollError | None = None
        self._was_well = False  # in its run or, without one, on the network: what went wrong before does not count
        home = launch.home
        self._service = Keeper(Role("p2p service", str(home.log("service")), clean_end_is_final=False),
                               self._start_service, self.tell, backoff())
        self._ranks = Keeper(Role("trainer", str(home.log("rank-0")), clean_end_is_final=True),
                             self._start_ranks, self.tell, backoff())

    async def run(self, answer: Callable[[Connection, Any], Any]) -> int:
        """Until the daemon is asked to end, or fails; its exit code. Raises HomeError if sockets cannot be made."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.end)
        self.launch.home.failure.unlink(missing_ok=True)
        self.launch.home.open_runtime()
        try:
            await self._live(answer)
        finally:
            self._service.kill()
            self._ranks.kill()
            self.launch.home.close_runtime()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        self.tell("ended")
        return self._verdict()

    def end(self) -> None:
        """Drain; called again, end everything at once."""
        if self._stop.is_set():
            self._at_once.set()
            return
        self._stop.set()
        steps = "the trainer stops at its next step, then the network says goodbye"
        self.tell(f"ending: {steps if self._ranks.children else 'the network says goodbye'}")

    def tell(self, line: str) -> None:
        """One event for people: on the terminal and in the daemon's log."""
        text = one_line(line)
        self._log("daemon").write(time.strftime("%Y-%m-%d %H:%M:%S ") + text)
        self._say(time.strftime("%H:%M:%S ") + text)

    @property
    def failed(self) -> bool:
        return self._failure is not None

    @property
    def rank_pids(self) -> list[dict[str, int]]:
        return [{"rank": rank, "pid": child.pid} for rank, child in enumerate(self._ranks.children)]

    @property
    def restarts(self) -> dict[str, int]:
        return {"service": self._service.restarts, "trainer": self._ranks.restarts}

    @property
    def own_reason(self) -> dict[str, str] | None:
        """Why something is not as it should be here, beside what the service says."""
        if self._failure is not None:
            return {"code": self._failure.code, "message": str(self._failure)}
        if self._service.trouble:
            return {"code": "service_restarting", "message": f"the p2p service ended: {self._service.trouble}"}
        if self._ranks.trouble:
            return {"code": "trainer_restarting", "message": f"the trainer ended: {self._ranks.trouble}"}
        return None

    @property
    def warnings(self) -> list[str]:
        lost = sum(kept.lost_lines for kept in self._logs.values())
        if not lost:
            return self._warnings
        return [*self._warnings, f"log_lines_lost: {lost} lines could not be written to {self.launch.home.logs}"]

    async def _live(self, answer: Callable[[Connection, Any], Any]) -> None:
        api = Server(self.launch.home.api_socket, answer)
        try:
            async with asyncio.TaskGroup() as tasks:
                lasting = [tasks.create_task(api.run()), tasks.create_task(self.link.run())]
                tasks.create_task(self._keep(self._service))
                tasks.create_task(self._keep_trainer())
                await self._stop.wait()
                await self._drain()
                for task in lasting:
                    task.cancel()
        except* OSError as group:
            raise HomeError(f"cannot make the socket {self.launch.home.api_socket}: {group.exceptions[0]}.") from group

    async def _drain(self) -> None:
        """The trainer first, so that its last words still find the service; then the service."""
        draining = asyncio.ensure_future(self._stop_children())
        at_once = asyncio.ensure_future(self._at_once.wait())
        await asyncio.wait({draining, at_once}, return_when=asyncio.FIRST_COMPLETED)
        for keeper in (self._ranks, self._service):
            keeper.kill()
        at_once.cancel()
        draining.cancel()
        await asyncio.gather(draining, at_once, return_exceptions=True)

    async def _stop_children(self) -> None:
        await self._ranks.stop(TRAINER_GRACE_S)
        await self._service.stop(SERVICE_GRACE_S)

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        except AtollError as error:
            self._fail(error)

    async def _keep_trainer(self) -> None:
        if not self.launch.trains:
            return
        self._note_manifest()
        waits = [asyncio.ensure_future(event.wait()) for event in (self._manifest_held, self._stop)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._stop.is_set():
            await self._keep(self._ranks)

    def _fail(self, error: AtollError) -> None:
        if self._failure is None:
            self._failure = error
            self.tell(f"FAILED({error.code}): {error}")
            exit_code = int(exit_codes.of(error))
            words = {"code": error.code, "message": str(error), "exit_code": exit_code, "at": time.time()}
            with contextlib.suppress(OSError):  # the exit code and the terminal say it too
                write_durably(self.launch.home.failure, json.dumps(words).encode())
        self._stop.set()

    def _verdict(self) -> int:
        if self._failure is not None:
            return exit_codes.of(self._failure)
        reason = self.link.last.get("reason")
        if not self._was_well and isinstance(reason, dict):
            return exit_codes.of_network(str(reason.get("code")))
        return ExitCode.OK

    # Children

    async def _start_service(self) -> Sequence[Child]:
        return [await self._child(self.launch.service())]

    async def _start_ranks(self) -> Sequence[Child]:
        children: list[Child] = []
        try:
            for start in self.launch.ranks():
                children.append(await self._child(start))  # noqa: PERF401  those before a failed one have to end
        except BaseException:
            for child in children:
                child.kill()
                await child.wait()
            raise
        return children

    async def _child(self, start: Start) -> Child:
        return await Child.start(start.command, start.settings, self._log(start.log), start.environment)

    def _log(self, name: str) -> RotatingLog:
        if name not in self._logs:
            self._logs[name] = RotatingLog(self.launch.home.log(name), self.launch.config.log_mb * _LOG_BYTES_PER_MB)
        return self._logs[name]

    # What the service tells

    def _hear(self, event: str, args: dict[str, Any]) -> None:
        if event == "progress":
            notice = str(args.get("notice") or "")
            if notice and notice != self.trainer.progress.get("notice"):
                self.tell(f"trainer: {notice}")
            self.trainer.take_progress(args)
        elif event == "evaluated" and self.trainer.take_evaluation(args):
            self.tell(evaluation_line(args))

    async def _look(self, status: dict[str, Any]) -> None:
        """Once a second, and whenever somebody asks for the status."""
        self._note_manifest()
        on_network = self.launch.run is None and bool(status.get("addresses")) and not status.get("reason")
        self._was_well = self._was_well or bool(status.get("held")) or on_network
        for line in self._narrator.status_lines(status):
            self.tell(line)
        if self._narrator.new_round(status):
            row = await self.link.ask("last_round")
            if row:
                losses = {entry["round"]: entry["loss"] for entry in self.trainer.losses()[-4:]}
                self.tell(round_line(row, losses.get(row["round"])))
        if status.get("state") == "FAILED" and not self._stop.is_set():
            reason = status.get("reason")
            reason = reason if isinstance(reason, dict) else {}
            code, message = str(reason.get("code", "failed")), str(reason.get("message", "no reason given"))
            self._fail(ChildError(message, code, exit_codes.of_code(code)))

    def _note_manifest(self) -> None:
        """The ranks can start once manifest and tokenizer lie in the run's folder."""
        run = self.launch.run
        if run is None or self._manifest_held.is_set():
            return
        folder = self.launch.home.run_folder(run.run_id)
        if not (folder / "manifest").exists():
            return
        manifest = run.manifest or read_manifest(folder / "manifest")
        if run.manifest is None:
            self.launch = dataclasses.replace(self.launch, run=dataclasses.replace(run, manifest=manifest))
        if manifest.draft.model.tokenizer == "bytes" or (folder / "tokenizer.json").exists():
            self._manifest_held.set()
