"""One daemon per home: a lock on `daemon.lock`, with the holder's pid inside.

The lock is the kernel's (`flock`), so that a killed daemon leaves none behind. On a file system without locks the pid
in the file decides, and the degraded mode has a name that `atoll status` shows. Called by `atoll up`; `read_holder`
also by clients that wait for a daemon to end.
"""

import errno
import fcntl
import os
from types import TracebackType
from typing import Self

import psutil

from atoll.node.errors import AlreadyRunningError
from atoll.node.paths import Home, unusable

NO_LOCKS_WARNING = "no_file_locks: this file system has no locks, so a second daemon is told by its pid only"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class DaemonLock:
    """Held from construction to `release` (or the end of the process). Raises AlreadyRunningError, HomeError."""

    def __init__(self, home: Home) -> None:
        self.warning: str | None = None
        self._path = home.lock
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unusable(self._path, "open", error) from error
        try:
            self._acquire(home)
            self._write()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _acquire(self, home: Home) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _already_running(home) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise unusable(self._path, "lock", error) from error
            if read_holder(home) is not None:
                raise _already_running(home) from error
            self.warning = NO_LOCKS_WARNING

    def _write(self) -> None:
        own = psutil.Process()
        text = f"{own.pid} {own.create_time()}\n".encode()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)
        except OSError as error:
            raise unusable(self._path, "write", error) from error


def read_holder(home: Home) -> int | None:
    """Pid of the live process that wrote the lock file; None for an empty, damaged or stale one."""
    try:
        pid_text, started_text = home.lock.read_text("ascii").split()
        pid, started = int(pid_text), float(started_text)
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if same else None


def _already_running(home: Home) -> AlreadyRunningError:
    pid = read_holder(home)
    who = f" (pid {pid})" if pid else ""
    return AlreadyRunningError(
        f"a daemon already runs on the home {home.root}{who}: see `atoll status`, end it with `atoll down`, "
        "or name another home with --home."
    )
