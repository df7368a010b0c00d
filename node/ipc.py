"""Local sockets: length-prefixed canonical msgpack over 0600 Unix sockets, with open files passed beside a frame.

A frame is a 4-byte big-endian length and a map: a request `{call, args, files, id}`, an answer `{files, id, ok}` or
`{error: [code, text], files, id}`, or an event `{event, args, files}`. `files` says how many descriptors belong to the
frame; they arrive in order. Whoever breaks the rules (a frame too long, not a map, descriptors that nobody announced)
is cut off. Knows nothing of what the calls mean: `ipc_server`, `ipc_client` and the blocking `outer_sync` use it.
"""

import array
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from atoll.node.errors import CallError, IpcError
from atoll.protocol import canonical
from atoll.protocol.errors import MalformedError

FRAME_LIMIT = 8 << 20
MAX_FILES = 4
_LENGTH = struct.Struct(">I")
_RECEIVE_BYTES = 1 << 16


@dataclass
class Frame:
    """One message. Exactly one of `call`, `event` and `answer_to` is set."""

    call: str | None = None
    event: str | None = None
    answer_to: int | None = None
    request_id: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    value: Any = None
    error: tuple[str, str] | None = None
    files: list[int] = field(default_factory=list)  # descriptors; whoever takes the frame closes them

    def result(self) -> Any:
        """The answer's value. Raises CallError if it is an error."""
        if self.error is not None:
            raise CallError(self.error[1], self.error[0])
        return self.value

    def close_files(self) -> None:
        for descriptor in self.files:
            os.close(descriptor)
        self.files = []


def pack(frame: Frame) -> bytes:
    """Length and body of a frame. Raises IpcError if it is longer than FRAME_LIMIT."""
    body: dict[str, Any] = {"files": len(frame.files)}
    if frame.call is not None:
        body |= {"call": frame.call, "id": frame.request_id, "args": frame.args}
    elif frame.event is not None:
        body |= {"event": frame.event, "args": frame.args}
    elif frame.error is not None:
        body |= {"id": frame.answer_to, "error": list(frame.error)}
    else:
        body |= {"id": frame.answer_to, "ok": frame.value}
    data = canonical.encode(body)
    if len(data) > FRAME_LIMIT:
        raise IpcError(f"a message of {len(data)} bytes, at most {FRAME_LIMIT} are allowed")
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Bytes and descriptors in, frames out. Owns the descriptors that no frame has claimed yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._files: deque[int] = deque()

    def feed(self, data: bytes, files: Iterable[int] = ()) -> list[Frame]:
        """All frames that are complete now. Raises IpcError on the first one that breaks the rules."""
        self._buffer += data
        self._files.extend(files)
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
            self._check_files()
        except BaseException:
            for done in frames:
                done.close_files()
            raise
        return frames

    def _check_files(self) -> None:
        if len(self._files) > MAX_FILES:
            raise IpcError("more open files than frames speak of")

    def close(self) -> None:
        while self._files:
            os.close(self._files.popleft())

    def _next(self) -> Frame | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > FRAME_LIMIT:
            raise IpcError(f"a frame of {length} bytes, at most {FRAME_LIMIT} are allowed")
        if len(self._buffer) < _LENGTH.size + length:
            return None
        body = bytes(self._buffer[_LENGTH.size:_LENGTH.size + length])
        del self._buffer[:_LENGTH.size + length]
        try:
            tree = canonical.decode(body, limit=FRAME_LIMIT)
        except MalformedError as error:
            raise IpcError(f"a frame that is {error}") from error
        return self._frame(tree)

    def _frame(self, tree: Any) -> Frame:
        frame = _parse(tree)
        count = tree["files"]
        if count > len(self._files):
            raise IpcError(f"a frame speaks of {count} open files and brings {len(self._files)}")
        frame.files = [self._files.popleft() for _ in range(count)]
        return frame


def _parse(tree: Any) -> Frame:
    if not isinstance(tree, dict) or not _whole(tree.get("files"), MAX_FILES):
        raise IpcError("a frame that is no message")
    keys, args = set(tree) - {"files"}, tree.get("args")
    numbered = _whole(tree.get("id"))
    if keys == {"call", "id", "args"} and isinstance(tree["call"], str) and numbered and isinstance(args, dict):
        return Frame(call=tree["call"], request_id=tree["id"], args=args)
    if keys == {"event", "args"} and isinstance(tree["event"], str) and isinstance(args, dict):
        return Frame(event=tree["event"], args=args)
    if keys == {"id", "ok"} and numbered:
        return Frame(answer_to=tree["id"], value=tree["ok"])
    error = tree.get("error")
    if keys == {"id", "error"} and numbered and isinstance(error, tuple) and len(error) == 2:
        code, text = error
        if isinstance(code, str) and isinstance(text, str):
            return Frame(answer_to=tree["id"], error=(code, text))
    raise IpcError("a frame that is neither request, answer nor event")


def _whole(value: object, most: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def listen(path: os.PathLike[str]) -> socket.socket:
    """A listening, non-blocking socket at `path`, 0600 from its first moment. Raises OSError."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108  a PathLike
        before = os.umask(0o177)
        try:
            server.bind(os.fspath(path))
        finally:
            os.umask(before)
        server.listen(16)
        server.setblocking(False)
    except BaseException:
        server.close()
        raise
    return server


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end runs under our uid; True where the kernel does not tell (the socket is 0600 anyway)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", raw)[1] == os.geteuid())


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """What the socket has: bytes (empty: EOF) and close-on-exec descriptors. Raises IpcError, OSError."""
    room = socket.CMSG_SPACE(MAX_FILES * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(_RECEIVE_BYTES, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    files = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(payload[:len(payload) - len(payload) % files.itemsize])
    if flags & socket.MSG_CTRUNC:
        for descriptor in files:
            os.close(descriptor)
        raise IpcError("more open files in one message than are allowed")
    return data, list(files)
