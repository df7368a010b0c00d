"""Rests of this peer's contributions, where the codec uses error feedback: what each encoding left out, part by part.

`round.ledger` says which rest is the residual of which part; here they are kept, one file of int64 per contribution and
a small one beside it that makes it count. Nothing is fsynced: the files survive the process, as the contribution's own
bytes do; what a power cut leaves of them is held against the sums in the ledger's entry, and what does not fit is gone.
Used by `workshop`; `MemoryResiduals` by simulations, and by whoever has no folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from atoll.p2p.round.ledger import REST, Entry, Fixed, checksum
from atoll.protocol import canonical
from atoll.protocol.digest import Digest, content_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.layout import Layout


class Residuals(Protocol):
    def entries(self) -> list[Entry]:
        """All contributions whose rests are complete."""
        ...

    def write(self, base: Digest, rests: Iterator[Fixed]) -> None:
        """Keep a contribution's rests, part after part; they count once `keep` is called. Raises OSError."""
        ...

    def keep(self, entry: Entry) -> None:
        """Make the rests written last under the entry's base count. Raises OSError."""
        ...

    def read(self, entry: Entry, part: int) -> Fixed | None:
        """The `(size,) int64` rest of a part; None if it is gone or damaged."""
        ...

    def forget(self, base: Digest) -> None:
        """Drop a contribution's rests."""
        ...


class MemoryResiduals:
    def __init__(self) -> None:
        self._entries: dict[Digest, Entry] = {}
        self._rests: dict[Digest, list[Fixed]] = {}

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def write(self, base: Digest, rests: Iterator[Fixed]) -> None:
        self._entries.pop(base, None)
        self._rests[base] = list(rests)

    def keep(self, entry: Entry) -> None:
        self._entries[entry.base] = entry

    def read(self, entry: Entry, part: int) -> Fixed | None:
        return self._rests[entry.base][part] if self._entries.get(entry.base) is entry else None

    def forget(self, base: Digest) -> None:
        self._entries.pop(base, None)
        self._rests.pop(base, None)


class FileResiduals:
    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def entries(self) -> list[Entry]:
        found: dict[str, Entry] = {}
        for path in self._folder.glob("*.entry"):
            entry = self._entry(path)
            if entry is not None and entry.base.hex() == path.stem:
                found[path.stem] = entry
        for path in self._folder.iterdir():
            if path.stem not in found or path.suffix not in (".entry", ".rest"):  # a contribution that was never made
                path.unlink()
        return list(found.values())

    def write(self, base: Digest, rests: Iterator[Fixed]) -> None:
        self._path(base, ".entry").unlink(missing_ok=True)
        with self._path(base, ".rest").open("wb") as file:
            for rest in rests:
                file.write(rest.astype("<i8", copy=False).data.cast("B"))

    def keep(self, entry: Entry) -> None:
        body = canonical.encode(entry.tree())
        partial = self._path(entry.base, ".partial")
        partial.write_bytes(content_digest(body) + body)
        partial.rename(self._path(entry.base, ".entry"))

    def read(self, entry: Entry, part: int) -> Fixed | None:
        bounds = self._layout.bounds(part)
        size = bounds.stop - bounds.start
        try:
            rest = np.fromfile(self._path(entry.base, ".rest"), "<i8", size, offset=8 * bounds.start)
        except FileNotFoundError:
            return None
        rest = rest.astype(np.int64, copy=False)
        return rest if rest.size == size and checksum(rest) == int(entry.sums[part, REST]) else None

    def forget(self, base: Digest) -> None:
        for suffix in (".entry", ".rest"):
            self._path(base, suffix).unlink(missing_ok=True)

    def _path(self, base: Digest, suffix: str) -> Path:
        return self._folder / (base.hex() + suffix)

    def _entry(self, path: Path) -> Entry | None:
        data, parts = path.read_bytes(), self._layout.parts
        if content_digest(data[32:]) != data[:32]:
            return None
        try:
            return Entry.from_tree(canonical.decode(data[32:], limit=256 + 32 * parts), parts)
        except MalformedError:  # another version of this program wrote it
            return None
