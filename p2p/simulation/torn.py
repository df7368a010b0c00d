"""A voter's journal as the real bytes: `p2p.journal` on a file, torn at any byte by a death in the midst of a write.

In most seeds a disk keeps its memory as objects only, which is quicker; in one of sixteen every record goes through
here too, and what a start reads back is held against the objects. Ids come from the seed, so this writes a new file's
header itself, as the journal's docstring says it has to be. Used by `disk`.
"""

import contextlib
import logging
import random
from collections.abc import Collection, Iterator
from pathlib import Path

from atoll.p2p.journal import Journal, OwnContribution
from atoll.p2p.round.synod import Acceptor
from atoll.protocol.digest import Digest, content_digest

MAGIC = b"atoll\0j\1"
CHECK_BYTES = 16


class JournalFile:
    def __init__(self, path: Path, journal: bytes) -> None:
        self.path = path
        self._open = self._new(journal)

    @property
    def id(self) -> bytes:
        return self._open.id

    @property
    def promises(self) -> dict[Digest, Acceptor]:
        return self._open.acceptors

    @property
    def contributions(self) -> dict[Digest, OwnContribution]:
        return self._open.contributions

    @property
    def floor(self) -> frozenset[Digest]:
        return self._open.floor

    def save(self, parent: Digest, acceptor: Acceptor) -> None:
        self._open.save_acceptor(parent, acceptor)

    def contribute(self, base: Digest, own: OwnContribution) -> None:
        self._open.save_contribution(base, own)

    def prune(self, keep: Collection[Digest], tip: Digest) -> None:
        self._open.prune(keep, tip)

    def tear(self, parent: Digest, acceptor: Acceptor, dice: random.Random) -> bool:
        """Die while a record is written: any number of its bytes are on the disk. Whether it is whole."""
        before = self.path.stat().st_size
        self._open.save_acceptor(parent, acceptor)
        size = self.path.stat().st_size
        cut = dice.randint(min(before, size), size)
        self._open.close()
        with self.path.open("r+b") as file:
            file.truncate(cut)
        self._open = Journal.open(self.path)
        return cut == size

    def damage(self, dice: random.Random, journal: bytes) -> bool:
        """Flip a bit anywhere; whether that is seen. The journal then begins anew under the id `journal`."""
        self._open.close()
        data = bytearray(self.path.read_bytes())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        self.path.write_bytes(data)
        with _quiet():
            found = Journal.open(self.path)
        found.close()
        self._open = self._new(journal)
        return found.lost

    def begin(self, journal: bytes) -> None:
        """An empty one in the old one's place."""
        self._open.close()
        self._open = self._new(journal)

    def reopen(self) -> None:
        """As another process does."""
        self._open.close()
        self._open = Journal.open(self.path)

    def close(self) -> None:
        self._open.close()

    def _new(self, journal: bytes) -> Journal:
        self.path.write_bytes(MAGIC + journal + content_digest(MAGIC + journal)[:CHECK_BYTES])
        return Journal.open(self.path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The journal warns of damage, which here is done on purpose."""
    logger = logging.getLogger("atoll.p2p.journal")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
