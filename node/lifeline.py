"""A child process's tie to its supervisor: it never outlives it, and hears a request to stop.

The supervisor holds the child's standard input open. The first frame on it is the child's settings (nothing of them
in argv, where everybody could read them); later a `stop` event may come; its end means that the supervisor is gone, and
then the process ends at once. On Linux the kernel also kills the child when its parent dies (PR_SET_PDEATHSIG), which
needs no thread to be scheduled. Called first thing by `service_process` and `rank_process`.
"""

import ctypes
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

from atoll.node.errors import IpcError
from atoll.protocol import canonical
from atoll.protocol.errors import AtollError

SETTINGS_LIMIT = 4 << 20
ORPHANED = 75
_LENGTH = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1
_STDIN = 0
FAILURE_MARK = "atoll-failure: "


def frame(tree: Any) -> bytes:
    """A message for a child's standard input."""
    data = canonical.encode(tree)
    return _LENGTH.pack(len(data)) + data


STOP = frame({"stop": True})


def attach() -> dict[str, Any]:
    """Tie this process to its parent and read the settings. Raises IpcError if none come."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise IpcError(f"prctl: {os.strerror(ctypes.get_errno())}")
    tree = _read(_STDIN)
    if not isinstance(tree, dict):
        raise IpcError("no settings on standard input: this program is started by `atoll up`, not by hand.")
    # A parent that died before prctl took effect has left this process to another one.
    if os.getppid() != tree.get("parent_pid"):
        os._exit(ORPHANED)
    return tree


def watch(on_stop: Callable[[], None]) -> None:
    """From now on call `on_stop` (in a thread) when the supervisor asks, and die when it is gone."""
    threading.Thread(target=_watch, args=(_STDIN, on_stop), name="lifeline", daemon=True).start()


def _watch(descriptor: int, on_stop: Callable[[], None]) -> None:
    while True:
        tree = _read(descriptor)
        if tree is None:
            os._exit(ORPHANED)
        if isinstance(tree, dict) and tree.get("stop") is True:
            on_stop()


def _read(descriptor: int) -> Any:
    """The next message, or None at the end of the stream and for anything that is no message."""
    head = _exactly(descriptor, _LENGTH.size)
    (length,) = _LENGTH.unpack(head) if len(head) == _LENGTH.size else (SETTINGS_LIMIT + 1,)
    if length > SETTINGS_LIMIT:
        return None
    try:
        return canonical.decode(_exactly(descriptor, length), limit=SETTINGS_LIMIT)
    except AtollError:
        return None


def _exactly(descriptor: int, count: int) -> bytes:
    """Unbuffered: a daemon thread that waits in a buffered reader would crash the interpreter's end."""
    data = b""
    while len(data) < count and (more := os.read(descriptor, count - len(data))):
        data += more
    return data
