"""Frames of the local sockets: what goes in comes out, and hostile bytes cut their sender off and nobody else."""

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from atoll.node import ipc, shared_vector
from atoll.node.errors import CallError, IpcError
from atoll.node.ipc_async import Reply, Server, connect, ignore_event, refuse
from atoll.protocol import canonical
from atoll.protocol.errors import ManifestError


def open_files():
    return set(Path("/proc/self/fd").iterdir())


def framed(tree):
    data = canonical.encode(tree)
    return struct.pack(">I", len(data)) + data


@pytest.mark.parametrize("frame", [
    ipc.Frame(call="status", request_id=7, args={"first": 0, "blob": b"\x00\xff"}),
    ipc.Frame(event="progress", args={"loss": 2.5}),
    ipc.Frame(answer_to=7, value={"round": 3, "rows": (1, 2)}),
    ipc.Frame(answer_to=7, error=("not_running", "no daemon")),
])
def test_a_frame_survives_its_bytes_however_they_are_cut(frame):
    data = ipc.pack(frame)
    for cut in range(len(data) + 1):
        reader = ipc.FrameReader()
        assert reader.feed(data[:cut]) + reader.feed(data[cut:]) == [frame]


@pytest.mark.parametrize("data", [
    struct.pack(">I", ipc.FRAME_LIMIT + 1),
    struct.pack(">I", 0xFFFFFFFF),
    struct.pack(">I", 3) + b"\xc1\xc1\xc1",
    framed([1, 2, 3]),
    framed("hello"),
    framed({"call": "x", "id": 1, "args": {}}),
    framed({"call": 5, "id": 1, "args": {}, "files": 0}),
    framed({"call": "x", "id": -1, "args": {}, "files": 0}),
    framed({"call": "x", "id": 1, "args": [], "files": 0}),
    framed({"call": "x", "id": 1, "args": {}, "files": 1}),
    framed({"call": "x", "id": 1, "args": {}, "files": 1 << 40}),
    framed({"id": 1, "error": ["a"], "files": 0}),
    framed({"id": 1, "ok": 1, "error": ["a", "b"], "files": 0}),
    framed({"event": "x", "args": {}, "files": True}),
], ids=repr)
def test_bytes_that_are_no_frame_are_refused_before_anything_is_built(data):
    with pytest.raises(IpcError):
        ipc.FrameReader().feed(data)


def test_an_answer_that_is_too_long_is_not_packed():
    with pytest.raises(IpcError):
        ipc.pack(ipc.Frame(answer_to=1, value=b"x" * ipc.FRAME_LIMIT))


@pytest.mark.parametrize("memfd", [True, False], ids=["memfd", "unlinked-file"])
def test_vectors_keep_their_bytes_and_their_size(memfd, monkeypatch):
    if not memfd:
        monkeypatch.delattr(os, "memfd_create")
    values = np.arange(70_000, dtype=np.float32) / 7
    descriptor = shared_vector.publish(values)
    try:
        assert np.array_equal(shared_vector.attach(descriptor, values.size), values)
        for wrong in (0, 1, values.size - 1, values.size + 1, 1 << 40):
            with pytest.raises(IpcError):
                shared_vector.attach(descriptor, wrong)
        if memfd:
            with pytest.raises(OSError):
                os.ftruncate(descriptor, 0)
            with pytest.raises(OSError):
                os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def test_memory_that_could_shrink_under_a_mapping_is_not_mapped():
    with tempfile.TemporaryFile() as file:
        file.truncate(400)
        with pytest.raises(IpcError, match="shrink"):
            shared_vector.attach(file.fileno(), 100)


@pytest.fixture
async def echo(home):
    """A server: `echo` gives its arguments, `file` a descriptor, `sum` adds one up, `no` and `bug` fail."""

    async def answer(connection, frame):
        if frame.call == "echo":
            return frame.args
        if frame.call == "file":
            return Reply({"numel": 5}, [shared_vector.publish(np.arange(5, dtype=np.float32))])
        if frame.call == "sum":
            return float(shared_vector.attach(frame.files[0], 5).sum())
        if frame.call == "no":
            raise ManifestError("the manifest is bad.")
        if frame.call == "bug":
            raise KeyError("oops")
        if frame.call == "unsendable":
            return object()
        return await asyncio.Event().wait()

    home.runtime.mkdir(exist_ok=True)
    server = Server(home.api_socket, answer)
    task = asyncio.create_task(server.run())
    await server.listening.wait()
    yield server
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not home.api_socket.exists()


@pytest.fixture
async def asking(echo, home):
    connection = await connect(home.api_socket, refuse, ignore_event)
    running = asyncio.create_task(connection.run())
    yield connection
    connection.close()
    await running


async def cut_off(rude):
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(rude, 1) == b""


async def test_requests_run_side_by_side_and_errors_keep_their_code(asking):
    waiting = asyncio.create_task(asking.request("forever"))
    assert await asking.request("echo", {"a": 1}) == {"a": 1}
    for call, code in (("no", "bad_manifest"), ("bug", "internal"), ("unsendable", "internal")):
        with pytest.raises(CallError) as caught:
            await asking.request(call)
        assert caught.value.code == code
        assert "oops" not in str(caught.value)
    assert not waiting.done()
    asking.close()
    with pytest.raises(IpcError):
        await waiting


async def test_the_socket_is_for_its_owner_alone(echo, home):
    assert home.api_socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("data", [b"\xff" * 64, framed([]), framed({"event": "x", "args": {}, "files": 2})], ids=repr)
async def test_who_breaks_the_rules_is_cut_off_alone(asking, home, data):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as rude:
        rude.setblocking(False)
        await loop.sock_connect(rude, str(home.api_socket))
        await loop.sock_sendall(rude, data)
        await cut_off(rude)
    assert await asking.request("echo", {"still": True}) == {"still": True}


async def test_files_that_nobody_announced_are_closed(asking, home):
    loop = asyncio.get_running_loop()
    before = len(open_files())
    with socket.socket(socket.AF_UNIX) as rude:
        rude.setblocking(False)
        await loop.sock_connect(rude, str(home.api_socket))
        null = os.open(os.devnull, os.O_RDONLY)
        for _ in range(3):
            socket.send_fds(rude, [ipc.pack(ipc.Frame(event="x"))], [null] * ipc.MAX_FILES)
        os.close(null)
        await cut_off(rude)
    assert await asking.request("echo", {}) == {}
    assert len(open_files()) == before


async def test_vectors_go_both_ways_beside_their_frames(echo, home):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as plain:
        plain.setblocking(False)
        await loop.sock_connect(plain, str(home.api_socket))
        plain.setblocking(True)
        plain.settimeout(5)

        def exchange():
            plain.sendall(ipc.pack(ipc.Frame(call="file", request_id=1)))
            frame = next(iter(ipc.FrameReader().feed(*ipc.receive(plain))))
            values = shared_vector.attach(frame.files[0], frame.value["numel"])
            assert np.array_equal(values, np.arange(5, dtype=np.float32))
            call = ipc.Frame(call="sum", request_id=2, files=frame.files)
            socket.send_fds(plain, [ipc.pack(call)], call.files)
            call.close_files()
            return next(iter(ipc.FrameReader().feed(*ipc.receive(plain)))).value

        assert await asyncio.to_thread(exchange) == 10.0


async def test_a_connection_that_does_not_read_is_closed(echo, home):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        await loop.sock_connect(deaf, str(home.api_socket))
        async with asyncio.timeout(10):
            while not echo.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)
            (connection,) = echo.connections
            while not connection.closed:
                connection.notify("news", {"text": "x" * 10_000})
                await asyncio.sleep(0)
