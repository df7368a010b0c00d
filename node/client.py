"""Asking a running daemon: a blocking client of the API socket in a home.

One connection per call, so a daemon that is restarted in between is no matter. Used by the command line and the demo;
imports nothing heavy.
"""

import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from atoll.node import ipc
from atoll.node.errors import IpcError, NotRunningError
from atoll.node.lock import read_holder
from atoll.node.paths import Home

_TIMEOUT_S = 5.0
_PAGE = 500


class Client:
    """Every method raises NotRunningError if no daemon runs on the home, IpcError if it does not answer in time."""

    def __init__(self, home: Home, timeout_s: float = _TIMEOUT_S) -> None:
        self._home = home
        self._timeout_s = timeout_s

    def status(self) -> dict[str, Any]:
        """What `atoll status --json` prints."""
        return dict(self._call("status"))

    def peers(self) -> list[dict[str, Any]]:
        """The peers of the run as this one sees them."""
        return list(self._call("peers"))

    def rounds(self) -> list[dict[str, Any]]:
        """The rows of `atoll rounds --json`, oldest first."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self._call("rounds", {"first": len(rows), "count": _PAGE})
            rows += page
            if len(page) < _PAGE:
                return rows

    def history(self) -> dict[str, Any]:
        """`losses`: training loss of each round; `evaluations`: held-out losses."""
        return dict(self._call("history"))

    def invite(self) -> str:
        """The word with which others join the run."""
        return str(self._call("invite"))

    def down(self, timeout_s: float = 40.0) -> None:
        """Ask the daemon to end, and wait until it has. Raises IpcError if it has not after `timeout_s`."""
        pid = int(self._call("down"))
        if not _wait_end(pid, timeout_s, self._home):
            log = self._home.log("daemon")
            raise IpcError(f"the daemon (pid {pid}) has not ended within {timeout_s:.0f} s: see {log}.")

    def _call(self, call: str, args: Mapping[str, Any] | None = None) -> Any:
        deadline = time.monotonic() + self._timeout_s
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(str(self._home.api_socket))
                connection.sendall(ipc.pack(ipc.Frame(call=call, request_id=1, args=dict(args or {}))))
                return _lists(_answer(connection, deadline).result())
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
                raise self._absent() from error
            except TimeoutError as error:
                pid = read_holder(self._home)
                raise IpcError(
                    f"the daemon{f' (pid {pid})' if pid else ''} does not answer within {self._timeout_s:g} s: "
                    "it may be frozen or too busy; try again, or end it by its pid."
                ) from error
            except PermissionError as error:
                raise IpcError(f"{self._home.api_socket} belongs to another user: run as the daemon's user.") from error
            except OSError as error:
                raise IpcError(f"the daemon broke off: {error.strerror or error}.") from error

    def _absent(self) -> NotRunningError | IpcError:
        pid = read_holder(self._home)
        if pid is not None:
            return IpcError(f"the daemon (pid {pid}) is just starting or ending: try again in a moment.")
        return NotRunningError(f"no daemon runs on the home {self._home.root}: start it with `atoll up`.")


def _lists(tree: Any) -> Any:
    """The tree as JSON would give it: canonical bytes come back with tuples."""
    if isinstance(tree, dict):
        return {key: _lists(value) for key, value in tree.items()}
    return [_lists(item) for item in tree] if isinstance(tree, tuple) else tree


def _answer(connection: socket.socket, deadline: float) -> ipc.Frame:
    reader = ipc.FrameReader()
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            data, files = ipc.receive(connection)
            if not data:
                raise IpcError("the daemon ended before it answered: see `atoll logs`.")
            for frame in reader.feed(data, files):
                if frame.answer_to == 1:
                    return frame
                frame.close_files()
    finally:
        reader.close()


def _wait_end(pid: int, timeout_s: float, home: Home) -> bool:
    """Whether the process ends in time; by the kernel's word where it gives it."""
    if hasattr(os, "pidfd_open"):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # a sandbox may forbid it: look again and again instead
        else:
            try:
                ready, _, _ = select.select([descriptor], [], [], timeout_s)
            finally:
                os.close(descriptor)
            return bool(ready)
    deadline = time.monotonic() + timeout_s
    while read_holder(home) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
