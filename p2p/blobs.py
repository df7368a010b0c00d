"""Content-addressed bytes on disk: contributions, results, genesis. Callers hold digests; memory holds an index only.

Blobs of one round and kind lie in one folder, so that a round's bytes go together. Ranges of existing files (genesis,
manifest) can be registered under a digest too. Writes are without fsync; `sync` makes chosen ones durable (DESIGN
rule 3: bytes first, then the vote).
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atoll.protocol.digest import Digest
from atoll.protocol.messages import BlobKind


@dataclass(frozen=True)
class Place:
    path: Path
    offset: int
    size: int


class BlobStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[Digest, Place] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob("*/*"):
            if path.suffix:  # a write that never ended
                path.unlink()
            else:
                self._places[bytes.fromhex(path.name)] = Place(path, 0, path.stat().st_size)

    def put(self, kind: BlobKind, parent: Digest, digest: Digest, data: bytes | memoryview) -> None:
        """Store bytes whose digest the caller has checked. Atomic; raises OSError."""
        if digest in self._places:
            return
        group = self._group(kind, parent)
        group.mkdir(mode=0o700, exist_ok=True)
        path = group / digest.hex()
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.rename(path)
        self._places[digest] = Place(path, 0, len(data))

    def register(self, digest: Digest, path: Path, offset: int, size: int) -> None:
        """Serve a range of an existing file under `digest`."""
        self._places[digest] = Place(path, offset, size)

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob, None if it is not here."""
        place = self._places.get(digest)
        return place.size if place else None

    def read(self, digest: Digest) -> bytes:
        """The whole blob. Raises KeyError or OSError."""
        place = self._places[digest]
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)

    def sync(self, digests: Iterable[Digest]) -> None:
        """Make these blobs durable."""
        folders = set()
        for digest in digests:
            place = self._places[digest]
            folders.add(place.path.parent)
            _fsync(place.path)
        for folder in folders:
            _fsync(folder)

    def discard(self, kind: BlobKind, parent: Digest) -> None:
        """Drop a round's blobs of one kind."""
        group = self._group(kind, parent)
        self._places = {digest: place for digest, place in self._places.items() if place.path.parent != group}
        shutil.rmtree(group, ignore_errors=True)

    def _group(self, kind: BlobKind, parent: Digest) -> Path:
        name = "result" if kind is BlobKind.RESULT else "part"
        return self.folder / f"{name}-{parent.hex()[:32]}"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
