"""Peers are followed by their homes: whoever answers there is the peer, and silence is told from absence."""

import asyncio
import contextlib
import subprocess
import sys

from atoll.node.demo.swarm import Peer
from atoll.node.demo.watch import Watch, ask_status
from atoll.node.ipc_async import Server
from atoll.node.lock import DaemonLock
from atoll.node.paths import Home


def home_in(folder):
    home = Home(folder / "peer-1")
    home.prepare()
    home.open_runtime()
    return home


@contextlib.asynccontextmanager
async def daemon(home, answer):
    server = Server(home.api_socket, answer)
    running = asyncio.ensure_future(server.run())
    try:
        await server.listening.wait()
        yield
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_daemon_that_answers_is_read_and_its_losses_are_kept(tmp_path):
    home, loss = home_in(tmp_path), 5.0

    async def answer(_connection, _frame):
        return {"state": "TRAIN", "round": 1, "inner_step": 3, "loss": loss, "evaluations": [{"round": 0, "loss": 5.5}]}

    watch = Watch(ask_status)
    watch.follow([Peer(1, home, "id", 1)])
    async with daemon(home, answer):
        [seen] = await watch.poll()
        loss = 4.0
        await watch.poll()
    assert (seen.state, seen.round, seen.peer_id) == ("TRAIN", 1, "id")
    assert watch.evaluations == {0: 5.5}
    assert watch.curve == [4.0]


async def test_nobody_there_is_starting_then_gone_or_killed_or_silent(tmp_path):
    home = home_in(tmp_path)
    peer = Peer(1, home, "id", 1)
    watch = Watch(ask_status)
    watch.follow([peer])
    assert [seen.state for seen in await watch.poll()] == ["STARTING"]
    peer.process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await peer.process.wait()
    assert peer.ended
    assert [seen.state for seen in await watch.poll()] == ["GONE"]
    with DaemonLock(home):  # somebody has started it again, and it does not answer yet
        assert [seen.state for seen in await watch.poll()] == ["STARTING"]
    peer.killed = True
    assert [seen.state for seen in await watch.poll()] == ["KILLED"]


async def test_a_frozen_daemon_is_silent_and_delays_nobody_for_long(tmp_path):
    home = home_in(tmp_path)
    frozen = asyncio.Event()

    async def answer(_connection, _frame):
        if frozen.is_set():
            await asyncio.Event().wait()
        return {"state": "TRAIN", "round": 4}

    watch = Watch(ask_status)
    watch.follow([Peer(1, home, "id", 1)])
    async with daemon(home, answer):
        await watch.poll()
        frozen.set()
        with DaemonLock(home):
            async with asyncio.timeout(3):
                [seen] = await watch.poll()
    assert (seen.state, seen.round, seen.alive) == ("SILENT", 4, True)


async def test_a_daemon_that_is_only_starting_answers_an_error_and_counts_as_nobody(tmp_path):
    home = home_in(tmp_path)

    async def answer(_connection, _frame):
        raise ValueError("not yet")

    async with daemon(home, answer):
        assert await ask_status(home) is None


def test_asking_needs_no_heavy_import():
    code = "import atoll.node.demo.show, sys; print({'torch', 'hivemind', 'transformers', 'libp2p'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
