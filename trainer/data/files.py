"""Which files a corpus consists of, in an order that every machine agrees on.

Order: the paths in the order given; below a folder, ascending by path components (as bytes). A name is relative to the
path that was given, so that the same folder has the same names everywhere. Links are followed, every folder and file
once; what is no regular file is never opened (a FIFO would block for ever) and becomes a named skip. Knows no formats.
"""

import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.protocol.settings import suggestion
from atoll.trainer.data.errors import DataError
from atoll.trainer.data.report import Tally

STDLIB_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
"""Folders of the standard library that differ from machine to machine, or would be most of the text."""


@dataclass(frozen=True)
class Source:
    name: str   # relative to the path given, with `/`; for a file that was given itself, its file name
    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Corpus:
    """What to read: given paths, or the Python standard library's own source (`.py` files)."""

    roots: tuple[Path, ...]
    suffix: str = ""
    left_out: frozenset[str] = frozenset()

    @classmethod
    def choose(cls, paths: Sequence[Path], source: str) -> "Corpus":
        """The corpus for the paths a person gave, else for the manifest's `data.source`. Raises DataError."""
        if paths:
            return cls(tuple(Path.cwd() / path for path in paths))
        if source == "stdlib":
            return cls((Path(sysconfig.get_paths()["stdlib"]),), ".py", STDLIB_LEFT_OUT)
        raise DataError("this run trains on each peer's own text: name a file or folder with --data.")

    def sources(self, tally: Tally) -> Iterator[Source]:
        """All regular files, in order. Raises DataError for a root that does not exist or cannot be read."""
        seen: set[tuple[int, int]] = set()
        for root in self.roots:
            try:
                status = root.stat()
            except OSError as error:
                raise _missing(root, error) from error
            yield from self._walk(root, status, seen, tally)

    def _walk(self, root: Path, status: os.stat_result, seen: set[tuple[int, int]], tally: Tally) -> Iterator[Source]:
        """Depth first with a stack of its own: neither a deep tree nor a loop of links can exhaust Python's."""
        stack = [("" if stat.S_ISDIR(status.st_mode) else root.name, os.fspath(root), status)]
        while stack:
            name, path, status = stack.pop()
            if stat.S_ISDIR(status.st_mode):
                if _again(seen, status):
                    tally.skip(name or path, "folder already read under another name")
                else:
                    stack.extend(reversed(self._entries(name, path, tally)))
            elif not stat.S_ISREG(status.st_mode):
                tally.skip(name, "not a regular file", _kind(status.st_mode))
            elif _again(seen, status):
                tally.skip(name, "file already read under another name")
            elif name.endswith(self.suffix):
                yield Source(name, path, status.st_size, status.st_mtime_ns)

    def _entries(self, name: str, path: str, tally: Tally) -> list[tuple[str, str, os.stat_result]]:
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if not name:
                raise DataError(f"cannot read the folder {path}: {error.strerror}; make it readable.") from error
            tally.skip(name, "unreadable folder", str(error.strerror))
            return []
        found = []
        for entry in entries:
            if entry.name in self.left_out:
                continue
            below = f"{name}/{entry.name}" if name else entry.name
            if entry.name.startswith("."):
                tally.skip(below, "hidden")
                continue
            try:
                found.append((below, entry.path, entry.stat()))
            except OSError as error:  # a dangling link, a loop of links, no permission
                tally.skip(below, "unreadable file", str(error.strerror))
        return found


def _again(seen: set[tuple[int, int]], status: os.stat_result) -> bool:
    """Whether this has been met before, under whatever name: text that is read twice would leak into held-out."""
    key = (status.st_dev, status.st_ino)
    known = key in seen
    seen.add(key)
    return known


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


def _missing(root: Path, error: OSError) -> DataError:
    if not isinstance(error, FileNotFoundError):
        return DataError(f"cannot read {root}: {error.strerror}; choose a file or folder that this user can read.")
    try:
        near = suggestion(root.name, [path.name for path in root.parent.iterdir()])
    except OSError:
        near = ""
    hint = near if near.startswith("; did you mean") else ""
    return DataError(f"{root} does not exist{hint}: give an existing file or folder of text, JSONL or parquet.")
