"""Files that are whole after a crash: replaced in one step, or appended to, and on the disk when a call returns.

Knows no formats: what a torn tail means is for the reader of a file to say. Used by `journal`, `run_store`, `blobs`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes the place of `path`. One found after a crash means nothing."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file at `path`, on the disk when the block ends; removed again if the block raises. Raises OSError."""
    try:
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # a full disk needs the room
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, whole or not at all. Raises OSError."""
    partial = partial_of(path)
    with new_file(partial) as file:
        yield file
    partial.rename(path)
    sync(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Give `path` this content, whole or not at all. Raises OSError."""
    with replacing(path) as file:
        file.write(data)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`; not on the disk yet. Raises OSError, with some of it written perhaps."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file, made if there is none. Raises OSError, and then takes back what was written."""
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = os.fstat(descriptor).st_size
        try:
            write_at(descriptor, data, end)
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, end)  # or whatever is appended next lies behind a torn entry, unreadable
            raise
    finally:
        os.close(descriptor)
    if new:
        sync(path.parent)
