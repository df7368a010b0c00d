"""Both ends of a local socket in an event loop: requests with answers, and events, on one connection.

A connection that does not read what it is sent, or breaks the rules of `ipc`, is closed; the other ones go on. Requests
run side by side, so one that waits for a round does not hold up the rest. Used by the supervisor (API server, and
client of the p2p service) and by the p2p service's process.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.node import ipc
from atoll.node.errors import IpcError
from atoll.protocol.errors import AtollError

_OUTGOING_FRAMES = 256
_REQUESTS_AT_ONCE = 64

log = logging.getLogger(__name__)


@dataclass
class Reply:
    """An answer with open files beside it; they are closed here once they are sent."""

    value: Any
    files: list[int] = field(default_factory=list)


class _ClosedError(Exception):
    """Ends the task group of a connection."""


class Connection:
    """One connected socket. Nothing moves unless `run` runs; it ends when either side closes."""

    def __init__(self, connected: socket.socket, answer: "Answerer", on_event: "Listener") -> None:
        connected.setblocking(False)
        self._socket = connected
        self._answer = answer
        self._on_event = on_event
        self._outgoing: asyncio.Queue[ipc.Frame] = asyncio.Queue(_OUTGOING_FRAMES)
        self._pending: dict[int, asyncio.Future[ipc.Frame]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._last_id = 0
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Serve the connection until it closes. Never raises for what the other end did."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(tasks))
                tasks.create_task(self._write())
                await self._closing.wait()
                raise _ClosedError  # noqa: TRY301  ends the group's tasks
        except* _ClosedError:
            pass
        finally:
            self._abandon()

    async def request(self, call: str, args: Mapping[str, Any] | None = None) -> Any:
        """The value of the other end's answer. Raises CallError for an error, IpcError if the connection ends first."""
        if self._closing.is_set():
            raise IpcError("the connection is closed")
        self._last_id += 1
        request_id = self._last_id
        future: asyncio.Future[ipc.Frame] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        try:
            self._put(ipc.Frame(call=call, request_id=request_id, args=dict(args or {})))
            frame = await future
        finally:
            del self._pending[request_id]
        frame.close_files()
        return frame.result()

    def notify(self, event: str, args: Mapping[str, Any] | None = None) -> None:
        """Send an event; a connection that has long stopped reading is closed instead."""
        self._put(ipc.Frame(event=event, args=dict(args or {})))

    def close(self) -> None:
        self._closing.set()

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def _put(self, frame: ipc.Frame) -> None:
        if not self._closing.is_set():
            try:
                self._outgoing.put_nowait(frame)
            except asyncio.QueueFull:
                log.warning("closing a local connection that does not read")
                self.close()
            else:
                return
        frame.close_files()

    async def _read(self, tasks: asyncio.TaskGroup) -> None:
        reader = ipc.FrameReader()
        try:
            while True:
                await self._readable()
                try:
                    data, files = ipc.receive(self._socket)
                except BlockingIOError:
                    continue
                if not data:
                    break
                for frame in reader.feed(data, files):
                    self._dispatch(frame, tasks)
        except (OSError, IpcError) as error:
            log.warning("closing a local connection: %s", error)
        finally:
            reader.close()
            self.close()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._socket)

    def _dispatch(self, frame: ipc.Frame, tasks: asyncio.TaskGroup) -> None:
        if frame.call is not None:
            if len(self._serving) >= _REQUESTS_AT_ONCE:
                frame.close_files()
                self._put(ipc.Frame(answer_to=frame.request_id, error=("busy", "too many requests at once")))
                return
            task = tasks.create_task(self._serve(frame))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
            return
        future = self._pending.get(frame.answer_to) if frame.answer_to is not None else None
        if future is not None and not future.done():
            future.set_result(frame)
            return
        if frame.event is not None:
            self._on_event(frame.event, frame.args)
        frame.close_files()

    async def _serve(self, frame: ipc.Frame) -> None:
        answer = ipc.Frame(answer_to=frame.request_id)
        try:
            value = await self._answer(self, frame)
            if isinstance(value, Reply):
                answer.value, answer.files = value.value, value.files
            else:
                answer.value = value
        except AtollError as error:
            answer.error = (error.code, str(error))
        except ValueError as error:
            answer.error = ("bad_value", str(error))
        except Exception:
            log.exception("a local request failed", extra={"call": frame.call})
            answer.error = ("internal", f"the request {frame.call!r} met a defect; the log has the details")
        finally:
            frame.close_files()
        self._put(answer)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                frame = await self._outgoing.get()
                try:
                    data = memoryview(self._pack(frame))
                    sent = 0
                    while frame.files and not sent:
                        try:
                            sent = socket.send_fds(self._socket, [data], frame.files)
                        except BlockingIOError:
                            await self._writable()
                    await loop.sock_sendall(self._socket, data[sent:])
                finally:
                    frame.close_files()
        except OSError as error:
            log.info("a local connection went away: %s", error)
        finally:
            self.close()

    @staticmethod
    def _pack(frame: ipc.Frame) -> bytes:
        try:
            return ipc.pack(frame)
        except (IpcError, TypeError, ValueError, OverflowError) as error:
            log.exception("a message that cannot be sent")
            if frame.answer_to is None:
                return b""
            return ipc.pack(ipc.Frame(answer_to=frame.answer_to, error=("internal", f"unsendable answer: {error}")))

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self._socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._socket)

    def _abandon(self) -> None:
        self._closing.set()
        while not self._outgoing.empty():
            self._outgoing.get_nowait().close_files()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(IpcError("the other end of the local socket went away"))
        self._socket.close()


Answerer = Callable[[Connection, ipc.Frame], Awaitable[Any]]
"""Gives the value (or a Reply with files) for a request; AtollError and ValueError become error answers."""

Listener = Callable[[str, dict[str, Any]], None]
"""Takes an event: name and arguments. Must not block."""


class Server:
    """Accepts connections at a path. `run` listens at once, calls `ready`, and ends only by cancellation."""

    def __init__(
        self, path: Path, answer: Answerer, *, on_event: Listener | None = None,
        on_open: Callable[[Connection], None] | None = None,
    ) -> None:
        self._path = path
        self._answer = answer
        self._on_event = on_event or ignore_event
        self._on_open = on_open
        self.connections: set[Connection] = set()
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Raises OSError if the path cannot be listened on."""
        loop = asyncio.get_running_loop()
        with contextlib.closing(ipc.listen(self._path)) as listener:
            self.listening.set()
            try:
                async with asyncio.TaskGroup() as tasks:
                    while True:
                        accepted, _ = await loop.sock_accept(listener)
                        if ipc.is_ours(accepted):
                            tasks.create_task(self._serve(accepted))
                        else:
                            accepted.close()
            finally:
                with contextlib.suppress(OSError):
                    self._path.unlink()

    def broadcast(self, event: str, args: Mapping[str, Any]) -> None:
        for connection in list(self.connections):
            connection.notify(event, args)

    async def _serve(self, accepted: socket.socket) -> None:
        connection = Connection(accepted, self._answer, self._on_event)
        self.connections.add(connection)
        try:
            if self._on_open is not None:
                self._on_open(connection)
            await connection.run()
        finally:
            self.connections.discard(connection)


async def connect(path: Path, answer: Answerer, on_event: Listener) -> Connection:
    """A connection to a listening socket. Raises OSError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, str(path))
    except BaseException:
        connected.close()
        raise
    return Connection(connected, answer, on_event)


def ignore_event(event: str, args: dict[str, Any]) -> None:
    """A listener for ends that expect no events."""


async def refuse(connection: Connection, frame: ipc.Frame) -> Any:  # noqa: ARG001
    """An answerer for ends that take no requests."""
    raise IpcError(f"no requests are taken here: {str(frame.call)[:40]!r}")
