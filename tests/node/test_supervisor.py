"""The daemon's first process with small children in place of network and trainer: restarts, failures, draining."""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, replace

import pytest

from atoll.node.backoff import Backoff
from atoll.node.client import Client
from atoll.node.config import NodeConfig
from atoll.node.daemon_api import DaemonApi
from atoll.node.errors import CallError, NotRunningError
from atoll.node.exit_codes import ExitCode
from atoll.node.launch import Launch, Start
from atoll.node.run_source import RunSource
from atoll.node.supervisor import Supervisor
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest

OWNER = Identity(bytes(32))
MANIFEST = Manifest.sign(
    Draft.from_tree({"run": {"name": "r", "owner": peer_name(OWNER.peer_id)}}), GenesisSettings(10, bytes(32)), OWNER
)
RUN_ID = MANIFEST.run_id
PREAMBLE = """
import asyncio, json, os, sys, threading
from pathlib import Path
from atoll.node import lifeline
settings = lifeline.attach()
stop = threading.Event()
lifeline.watch(stop.set)
"""
SERVICE = PREAMBLE + """
from atoll.node.service_host import ServiceHost
import numpy as np

class Outer:
    parent, round, tokens, finished, params = b"p0", 0, 0, False, np.zeros(4, np.float32)

class Service:
    def outer(self): return Outer
    def status(self): return json.loads(Path(settings["status"]).read_text())
    def peers(self): return [{"peer_id": "12D3KooWfriend"}]
    def rounds(self): return [{"round": 1, "contributors": [{"tokens": 640}], "seconds": 2.0, "ballot": 0}]
    def live_addresses(self): return ["/ip4/127.0.0.1/tcp/4001"]
    def progress(self, *args): pass

async def main():
    host = ServiceHost(Path(settings["socket"]))
    server = asyncio.create_task(host.server.run())
    host.attach(Service())
    host.hold()
    await asyncio.to_thread(stop.wait)
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)
    Path(settings["status"]).with_name("goodbye").write_text("said")

asyncio.run(main())
"""
RANK = PREAMBLE + """
from atoll.node.outer_sync import SocketOuterSync
from atoll.trainer.outer_sync import Evaluation, Progress
port = SocketOuterSync(Path(settings["socket"])).open()
port.evaluated(Evaluation(b"p0", 0, 5.5, 1000, 1000))
while not stop.wait(0.05):
    port.report(Progress(b"p0", 3, 20, 4.25, 300, 123.0))
port.close()
print("checkpoint written")
"""
STUBBORN = PREAMBLE + "import time\ntime.sleep(60)\n"


@dataclass(frozen=True)
class FakeLaunch(Launch):
    service_code: str = SERVICE
    rank_code: str = RANK

    def service(self):
        settings = {"socket": str(self.home.service_socket), "status": str(self.home.root / "status.json")}
        return Start([sys.executable, "-c", self.service_code], settings, {}, "service")

    def ranks(self):
        settings = {"socket": str(self.home.service_socket)}
        command = [sys.executable, "-c", self.rank_code]
        return [Start(command, settings, {}, f"rank-{rank}") for rank in range(self.config.ranks)]


class Daemon:
    def __init__(self, launch):
        self.launch = launch
        self.lines = []
        quick = lambda: Backoff(first_s=0.05, most_s=0.2, attempts=4)  # noqa: E731
        self.supervisor = Supervisor(launch, self.lines.append, backoff=quick)
        self.client = Client(launch.home)

    async def ask(self, call):
        return await asyncio.to_thread(getattr(self.client, call))

    async def until(self, condition):
        async with asyncio.timeout(15):
            while True:
                try:
                    status = await self.ask("status")
                    if condition(status):
                        return status
                except NotRunningError:
                    pass
                await asyncio.sleep(0.02)

    def said(self, words):
        return any(words in line for line in self.lines)


@pytest.fixture
async def start(home):
    """Start a daemon with these children; it is ended with the test."""
    running = []

    async def begin(**changes):
        status = {"state": "TRAIN", "round": 0, "reason": None, "state_digest": "ab"}
        (home.root / "status.json").write_text(json.dumps(status))
        folder = home.run_folder(RUN_ID)
        folder.mkdir(parents=True)
        (folder / "manifest").write_bytes(MANIFEST.signed_bytes())
        config = changes.pop("config", NodeConfig(loopback=True))
        launch = FakeLaunch(home, config, 4001, OWNER.peer_id, RunSource(RUN_ID, None, ()))
        daemon = Daemon(replace(launch, **changes))
        daemon.task = asyncio.create_task(daemon.supervisor.run(DaemonApi(daemon.supervisor).answer))
        running.append(daemon)
        return daemon

    yield begin
    for daemon in running:
        daemon.supervisor.end()
        daemon.supervisor.end()
        await asyncio.gather(daemon.task, return_exceptions=True)


async def test_status_puts_service_and_trainer_together_and_down_ends_it_cleanly(start, home):
    daemon = await start()
    status = await daemon.until(lambda status: status["loss"] is not None and daemon.supervisor.trainer.losses())
    assert (status["state"], status["round"], status["state_digest"]) == ("TRAIN", 0, "ab")
    assert (status["inner_step"], status["loss"], status["tokens_per_s"]) == (3, 4.25, 123.0)
    assert [(row["round"], row["loss"]) for row in status["evaluations"]] == [(0, 5.5)]
    assert (status["run_id"], status["run_name"]) == (RUN_ID.hex(), "r")
    history = await daemon.ask("history")
    assert [(row["round"], row["loss"]) for row in history["losses"]] == [(1, 4.25)]
    assert await daemon.ask("peers") == [{"peer_id": "12D3KooWfriend"}]
    assert [row["round"] for row in await daemon.ask("rounds")] == [1]
    assert (await daemon.ask("invite")).startswith("atoll1")
    started = time.monotonic()
    daemon.supervisor.end()
    assert await daemon.task == ExitCode.OK
    assert time.monotonic() - started < 5
    assert (home.root / "goodbye").exists()
    assert "checkpoint written" in home.log("rank-0").read_text()
    assert not home.runtime.exists()
    with pytest.raises(NotRunningError):
        await daemon.ask("status")


async def test_each_child_is_restarted_without_the_other(start):
    daemon = await start()
    status = await daemon.until(lambda status: status["loss"] is not None)
    (rank,) = status["ranks"]
    daemon.supervisor._service.children[0].kill()
    await daemon.until(lambda status: status["restarts"]["service"] == 1 and status["state"] == "TRAIN")
    status = await daemon.ask("status")
    assert status["ranks"] == [rank], "the trainer went on"
    daemon.supervisor._ranks.children[0].kill()
    status = await daemon.until(lambda status: status["restarts"]["trainer"] == 1 and status["ranks"])
    assert status["ranks"] != [rank]
    assert status["restarts"]["service"] == 1
    assert daemon.said("the trainer ended (killed by SIGKILL")
    assert daemon.said("rank-0.log")


async def test_a_child_that_keeps_dying_ends_in_a_named_failure(start, home):
    daemon = await start(rank_code="import sys; print('out of luck'); sys.exit(9 * 5)")
    assert await daemon.task == ExitCode.FAILED
    assert daemon.said("4 times in a row")
    assert daemon.said("out of luck")
    assert not daemon.said("Traceback")
    words = json.loads(home.failure.read_text())
    assert words["code"] == "crashed"
    assert (home.root / "goodbye").exists(), "the service was ended in peace"


async def test_a_failure_that_no_restart_can_mend_ends_at_once(start):
    code = """
from atoll.node.child_main import run_child
from atoll.trainer.data.errors import DataError
def work(tree): raise DataError("the folder is empty: name another with --data.")
import sys
sys.exit(run_child("rank", work))
"""
    daemon = await start(rank_code=code)
    assert await daemon.task == ExitCode.DATA
    assert daemon.said("FAILED(bad_data): the folder is empty: name another with --data.")
    assert daemon.supervisor.restarts["trainer"] == 0


async def test_a_defect_of_a_child_shows_its_last_word_and_keeps_the_traceback_in_the_log(start, home):
    code = """
from atoll.node.child_main import run_child
import sys
def work(tree): raise KeyError("unexpected")
sys.exit(run_child("rank", work))
"""
    daemon = await start(rank_code=code)
    assert await daemon.task == ExitCode.INTERNAL
    assert daemon.said("KeyError")
    assert not daemon.said("Traceback")
    assert "Traceback" in home.log("rank-0").read_text()


async def test_all_ranks_end_with_one_of_them_and_the_first_cause_is_told(start):
    code = PREAMBLE + """
if settings.get("x") or os.environ.get("NEVER"): pass
name = Path(settings["socket"]).with_name("first")
try:
    name.touch(exist_ok=False)
except FileExistsError:
    print("atoll-failure: " + json.dumps({"code": "rank_lost", "message": "another rank stopped"})); sys.exit(1)
import time; time.sleep(0.3); name.unlink()
print("atoll-failure: " + json.dumps({"code": "bad_data", "message": "the first cause"})); sys.exit(7)
"""
    daemon = await start(rank_code=code, config=NodeConfig(loopback=True, ranks=2))
    assert await daemon.task == ExitCode.DATA
    assert daemon.said("the first cause")


async def test_a_service_that_reports_failure_ends_the_daemon(start, home):
    daemon = await start()
    await daemon.until(lambda status: status["state"] == "TRAIN")
    failed = {"state": "FAILED", "reason": {"code": "nondeterministic_cpu", "message": "this CPU computes otherwise."}}
    (home.root / "status.json").write_text(json.dumps(failed))
    assert await daemon.task == ExitCode.FAILED
    assert daemon.said("FAILED(nondeterministic_cpu): this CPU computes otherwise.")


async def test_children_that_do_not_stop_are_killed_within_ten_seconds_or_at_a_second_signal(start, monkeypatch):
    monkeypatch.setattr("atoll.node.supervisor.TRAINER_GRACE_S", 0.3)
    daemon = await start(rank_code=STUBBORN)
    await daemon.until(lambda status: status["ranks"])
    started = time.monotonic()
    daemon.supervisor.end()
    assert await daemon.task == ExitCode.OK
    assert time.monotonic() - started < 3


async def test_a_second_signal_ends_everything_at_once(start):
    daemon = await start(rank_code=STUBBORN)
    await daemon.until(lambda status: status["ranks"])
    started = time.monotonic()
    daemon.supervisor.end()
    daemon.supervisor.end()
    await daemon.task
    assert time.monotonic() - started < 2


async def test_a_trainer_whose_run_is_over_is_not_started_again(start):
    daemon = await start(rank_code=PREAMBLE)
    await daemon.until(lambda status: not status["ranks"] and status["state"] == "TRAIN")
    await asyncio.sleep(0.3)
    assert daemon.supervisor.restarts["trainer"] == 0


async def test_a_status_is_there_before_the_service_is(start):
    daemon = await start(service_code=STUBBORN)
    status = await daemon.until(lambda status: True)
    assert (status["state"], status["round"], status["state_digest"], status["reason"]) == ("STARTING", 0, None, None)
    with pytest.raises(CallError, match="just starting"):
        await daemon.ask("peers")
