"""The demo from beginning to end: make the peers, start them, watch, kill where asked, sum up, leave nothing behind.

Called by `atoll demo`. Every way out, an error and Ctrl-C too, passes through the end of the swarm.
"""

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from atoll.node.demo.executioner import Executioner
from atoll.node.demo.outcome import Outcome
from atoll.node.demo.plan import DemoPlan, is_quorum
from atoll.node.demo.snapshot import Snapshot
from atoll.node.demo.swarm import Swarm
from atoll.node.demo.text import bytes_text
from atoll.node.demo.view import Frame, View
from atoll.node.demo.watch import Ask, Watch
from atoll.node.paths import make_folder

_POLL_S = 0.25
_NEAR_POLL_S = 0.03
_FIRST_PEER_S = 15.0
_FINAL_EVALUATION_S = 90.0
_RANK_BYTES = 700_000_000  # resident, of a trainer rank of the demo's model (measured)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Show:
    def __init__(self, plan: DemoPlan, view: View, ask: Ask) -> None:
        self._plan = plan
        self._view = view
        self._ask = ask
        self._faults: list[str] = []
        self._interrupted = False
        self._started = time.monotonic()
        self._numel = 0

    async def run(self) -> Outcome:
        """Play the plan. Raises AtollError where it cannot begin; what goes wrong later is in the outcome."""
        folder = self._plan.home or Path(tempfile.mkdtemp(prefix="atoll-demo-"))
        swarm = Swarm(self._plan, folder)
        watch = Watch(self._ask)
        playing = asyncio.ensure_future(self._play(swarm, watch))
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._interrupt, playing)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await playing
            return Outcome(
                plan=self._plan, numel=self._numel, peers=watch.snapshots,
                evaluations=watch.evaluations, curve=watch.curve, seconds=time.monotonic() - self._started,
                interrupted=self._interrupted, faults=self._faults,
            )
        finally:
            self._view.close()
            await swarm.stop()
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
            if self._plan.home is None:
                shutil.rmtree(folder, ignore_errors=True)

    def _interrupt(self, playing: asyncio.Future[None]) -> None:
        """Once is enough: what follows ends within seconds by itself."""
        self._interrupted = True
        playing.cancel()

    async def _play(self, swarm: Swarm, watch: Watch) -> None:
        make_folder(swarm.folder)
        self._mind_memory()
        self._view.note(f"making keys for {self._plan.peers} peers and signing a run among them")
        manifest = await swarm.prepare()
        self._numel = manifest.genesis.numel
        self._view.note(f"run {manifest.run_id.hex()[:16]}: {self._numel:,} parameters, homes in {swarm.folder}")
        watch.follow(swarm.peers)
        await self._start(swarm, watch)
        executioner = Executioner(self._plan)
        completed_at: float | None = None
        while True:
            peers = await self._look(watch)
            self._report_ends(swarm, peers)
            verdict = executioner.judge(peers)
            if verdict:
                await swarm.kill(verdict.victims)
                self._view.note(verdict.sentence)
                continue
            if self._is_lost(peers):
                return
            if self._plan.rounds and all(peer.completed(self._plan.rounds) for peer in peers if peer.alive):
                completed_at = completed_at or time.monotonic()
                if self._plan.rounds in watch.evaluations or time.monotonic() > completed_at + _FINAL_EVALUATION_S:
                    return
            await asyncio.sleep(_NEAR_POLL_S if executioner.is_near(peers) else _POLL_S)

    def _mind_memory(self) -> None:
        needed, free = self._plan.peers * self._plan.ranks * _RANK_BYTES, psutil.virtual_memory().available
        if needed > free:
            self._view.note(f"{bytes_text(needed)} of memory are needed, {bytes_text(free)} are free: use fewer peers.")

    async def _start(self, swarm: Swarm, watch: Watch) -> None:
        """Peer 1 first, so that the others find somebody to bootstrap from; then all of them at once."""
        await swarm.start([1])
        deadline = time.monotonic() + _FIRST_PEER_S
        while time.monotonic() < deadline and swarm.peers[0].process and not swarm.peers[0].ended:
            peers = await self._look(watch)
            if peers[0].has_addresses:
                break
            await asyncio.sleep(_POLL_S)
        await swarm.start(range(2, self._plan.peers + 1))

    async def _look(self, watch: Watch) -> Sequence[Snapshot]:
        peers = await watch.poll()
        self._view.update(Frame(peers, self._plan.rounds, time.monotonic() - self._started, watch.curve))
        return peers

    def _report_ends(self, swarm: Swarm, peers: Sequence[Snapshot]) -> None:
        """A peer that ended by itself is a fault of a run that has an end; otherwise its owner's business."""
        for peer, snapshot in zip(swarm.peers, peers, strict=True):
            if snapshot.state == "GONE" and peer.ended and not peer.reported:
                peer.reported = True
                sentence = f"peer {peer.index} has ended: {swarm.last_words(peer)}"
                self._view.note(sentence)
                if self._plan.rounds:
                    self._faults.append(sentence)

    def _is_lost(self, peers: Sequence[Snapshot]) -> bool:
        """No quorum is left for a run that has an end; without an end, somebody may start the dead peers again."""
        working = [peer.index for peer in peers if peer.alive and peer.state != "FAILED"]
        if not self._plan.rounds or is_quorum(working, self._plan.voters):
            return False
        failed = [peer for peer in peers if peer.state == "FAILED"]
        self._faults += [f"peer {peer.index} failed: {peer.reason or 'no reason given'}" for peer in failed]
        self._faults.append(f"{len(working)} of {self._plan.peers} peers work, which is no quorum: the run cannot end.")
        return True
