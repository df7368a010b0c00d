"""Log files of a home: bounded, rotated, and harmless when the disk is full.

`RotatingLog` takes the output of a child or of the daemon itself; `follow` and `tail` are for `atoll logs`. Rendering
of log records happens here too (`configure`), and nowhere else in the tree.
"""

import contextlib
import logging
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

_OLD_FILES = 3
_PLAIN_RECORD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class RotatingLog:
    """Appends lines to a file; at `limit_bytes` it becomes `.1`, `.1` becomes `.2`, … and the oldest goes."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit = limit_bytes
        self.lost_lines = 0  # the disk was full; `atoll status` names it

    def write(self, line: str) -> None:
        """Append one line. A file that cannot be written loses the line, counted in `lost_lines`."""
        data = line.encode(errors="replace") + b"\n"
        try:
            if self._size() + len(data) > self._limit:
                self._rotate()
            with self._path.open("ab", buffering=0) as file:
                file.write(data)
        except OSError:
            self.lost_lines += 1

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _rotate(self) -> None:
        for number in range(_OLD_FILES, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)


class _Formatter(logging.Formatter):
    """Time, level, logger, message, then the record's `extra` fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in record.__dict__.items() if key not in _PLAIN_RECORD}
        text = super().format(record)
        return text + "".join(f" {key}={value}" for key, value in extra.items()) if extra else text


def configure(name: str) -> None:
    """Send this process's log records to standard error, which the supervisor keeps in `logs/<name>.log`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)s {name} %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


class _FileHandler(logging.Handler):
    def __init__(self, path: Path, limit_bytes: int) -> None:
        super().__init__()
        self._log = RotatingLog(path, limit_bytes)

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._log.write(line)


def configure_file(path: Path, limit_bytes: int) -> None:
    """Send the supervisor's own log records to a file: its terminal is for people."""
    handler = _FileHandler(path, limit_bytes)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, the rotated file before it included where it is short. Raises OSError."""
    last: deque[str] = deque(maxlen=lines)
    for part in (path.with_name(path.name + ".1"), path):
        with contextlib.suppress(FileNotFoundError), part.open(encoding="utf-8", errors="replace") as file:
            last.extend(line.rstrip("\n") for line in file)
    return list(last)


class Follower:
    """New lines of several logs since the last look, across rotations."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places = {path: _place(path) for path in paths}

    def new_lines(self) -> list[tuple[Path, str]]:
        found: list[tuple[Path, str]] = []
        for path, (inode, offset) in self._places.items():
            now = _place(path)
            if now == (inode, offset):
                continue
            start = offset if now[0] == inode and now[1] >= offset else 0
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(start)
                data = file.read()
                whole = data[:data.rfind(b"\n") + 1]  # a line that is still being written waits for its end
                self._places[path] = (now[0], start + len(whole))
                found += [(path, line) for line in whole.decode(errors="replace").splitlines()]
        return found


def _place(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_ino, found.st_size)
