"""Content-addressed bytes on disk: contributions, results, genesis. Callers hold digests; memory holds an index only.

Blobs of one round and kind lie in one folder, so that a round's bytes go together; the same bytes may lie in several
(where one peer contributes, its part and the average are equal) and go with each folder separately. Ranges of existing
files (genesis, manifest) can be registered under a digest too. Writes are without fsync; `sync` makes chosen ones
durable (DESIGN rule 3: bytes first, then the vote).
"""

import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atoll.p2p import durable
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
        self._places: dict[Digest, list[Place]] = {}
        self._lock = threading.Lock()  # worker threads store while the event loop drops
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in folder.glob("*/*"):
            if path.suffix:  # a write that never ended
                path.unlink()
            else:
                self._add(bytes.fromhex(path.name), Place(path, 0, path.stat().st_size))

    def put(self, kind: BlobKind, parent: Digest, digest: Digest, data: bytes | memoryview) -> None:
        """Store bytes whose digest the caller has checked. Atomic; raises OSError."""
        path = self._group(kind, parent) / digest.hex()
        if any(place.path == path for place in self._places.get(digest, ())):
            return
        partial = path.with_suffix(f".{threading.get_ident()}")
        try:
            self._write(partial, path, data)
        except FileNotFoundError:  # its folder was discarded between its making and its use
            self._write(partial, path, data)
        self._add(digest, Place(path, 0, len(data)))

    @staticmethod
    def _write(partial: Path, path: Path, data: bytes | memoryview) -> None:
        partial.parent.mkdir(mode=0o700, exist_ok=True)
        partial.write_bytes(data)
        partial.rename(path)

    def register(self, digest: Digest, path: Path, offset: int, size: int) -> None:
        """Serve a range of an existing file under `digest`."""
        self._add(digest, Place(path, offset, size))

    def size(self, digest: Digest) -> int | None:
        """Bytes of a blob, None if it is not here."""
        places = self._places.get(digest)
        return places[0].size if places else None

    def results(self) -> list[Digest]:
        """The results that are here, whether or not their bytes are intact."""
        prefix = self._prefix(BlobKind.RESULT)
        return [d for d, places in self._places.items() if any(p.path.parent.name.startswith(prefix) for p in places)]

    def drop(self, digest: Digest) -> None:
        """Forget bytes that turned out damaged, so that they can be stored again."""
        with self._lock:
            places = self._places.pop(digest, [])
        for place in places:
            if place.path.parent.parent == self.folder:
                place.path.unlink(missing_ok=True)

    def read(self, digest: Digest) -> bytes:
        """The whole blob. Raises KeyError if it is not here, or no longer; OSError."""
        place = self._places[digest][0]
        try:
            with place.path.open("rb") as file:
                file.seek(place.offset)
                return file.read(place.size)
        except FileNotFoundError as error:
            raise KeyError(digest) from error

    def sync(self, digests: Iterable[Digest]) -> None:
        """Make these blobs durable."""
        folders = set()
        for digest in digests:
            for place in self._places[digest]:
                folders.add(place.path.parent)
                durable.sync(place.path)
        for folder in folders:
            durable.sync(folder)

    def discard_results(self, parent: Digest) -> None:
        """Drop the results of a round."""
        self._drop({self._group(BlobKind.RESULT, parent)})

    def retain(self, kind: BlobKind, parents: Iterable[Digest]) -> None:
        """Drop the blobs of this kind of all rounds but these."""
        kept = {self._group(kind, parent) for parent in parents}
        prefix = self._prefix(kind)
        self._drop({group for group in self.folder.iterdir() if group.name.startswith(prefix)} - kept)

    def _add(self, digest: Digest, place: Place) -> None:
        with self._lock:
            self._places.setdefault(digest, []).append(place)

    def _drop(self, groups: set[Path]) -> None:
        with self._lock:
            kept = {
                digest: [place for place in places if place.path.parent not in groups]
                for digest, places in self._places.items()
            }
            self._places = {digest: places for digest, places in kept.items() if places}
        for group in groups:
            shutil.rmtree(group, ignore_errors=True)

    def _group(self, kind: BlobKind, parent: Digest) -> Path:
        return self.folder / f"{self._prefix(kind)}{parent.hex()[:32]}"

    @staticmethod
    def _prefix(kind: BlobKind) -> str:
        return "result-" if kind is BlobKind.RESULT else "part-"
