"""A peer's disk in memory: journal, log, contributions, states and blobs, with what a kill or a power cut leaves.

Stands for `run_store`, the journal and `blobs` with the same meaning: what `Save` and the log write is durable at once,
blobs are durable once they were synced. Knows no protocol. `peer` writes it, `faults` damage it, `watch` looks into it.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from atoll.p2p.blobs import BlobStore
from atoll.p2p.journal import OwnContribution
from atoll.p2p.residuals import MemoryResiduals
from atoll.p2p.round.ledger import Entry, Fixed
from atoll.p2p.round.synod import Acceptor
from atoll.p2p.simulation.torn import JournalFile
from atoll.p2p.workshop import OuterState
from atoll.protocol.certificate import Certificate, Contribution
from atoll.protocol.digest import Digest
from atoll.protocol.fork import Fork
from atoll.protocol.messages import BlobKind

Link: TypeAlias = Certificate | Fork
Group: TypeAlias = tuple[bool, Digest]  # results or not, of which round


class MemoryBlobs(BlobStore):
    """`BlobStore` without files."""

    def __init__(self) -> None:  # deliberately without the base's: there is no folder
        self._groups: dict[Digest, dict[Group, bytes]] = {}
        self._durable: set[Digest] = set()

    def put(self, kind: BlobKind, parent: Digest, digest: Digest, data: bytes | memoryview) -> None:
        self._groups.setdefault(digest, {})[self._of(kind, parent)] = bytes(data)

    def size(self, digest: Digest) -> int | None:
        held = self._groups.get(digest)
        return None if held is None else len(next(iter(held.values())))

    def read(self, digest: Digest) -> bytes:
        return next(iter(self._groups[digest].values()))

    def sync(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            self._groups[digest]  # a sync of what is not here is a defect
            self._durable.add(digest)

    def results(self) -> list[Digest]:
        return [digest for digest, held in self._groups.items() if any(results for results, _ in held)]

    def is_durable(self, digest: Digest) -> bool:
        return digest in self._durable

    def discard_results(self, parent: Digest) -> None:
        group = self._of(BlobKind.RESULT, parent)
        self._drop_if(lambda found: found == group)

    def retain(self, kind: BlobKind, parents: Iterable[Digest]) -> None:
        results = kind is BlobKind.RESULT
        kept = {(results, parent) for parent in parents}
        self._drop_if(lambda found: found[0] == results and found not in kept)

    def power_cut(self) -> None:
        """What was never synced is gone."""
        self._groups = {digest: held for digest, held in self._groups.items() if digest in self._durable}

    def _drop_if(self, goes: Callable[[Group], bool]) -> None:
        for digest, held in list(self._groups.items()):
            for group in [found for found in held if goes(found)]:
                del held[group]
            if not held:
                del self._groups[digest]
                self._durable.discard(digest)

    @staticmethod
    def _of(kind: BlobKind, parent: Digest) -> Group:
        return kind is BlobKind.RESULT, parent


class Rests(MemoryResiduals):
    """Rests of contributions, of which a power cut takes the newest."""

    def __init__(self) -> None:
        super().__init__()
        self._gone: set[Digest] = set()

    def write(self, base: Digest, rests: Iterator[Fixed]) -> None:
        self._gone.discard(base)
        super().write(base, rests)

    def read(self, entry: Entry, part: int) -> Fixed | None:
        return None if entry.base in self._gone else super().read(entry, part)

    def power_cut(self) -> Digest | None:
        """The base of what is gone."""
        entries = self.entries()
        if not entries:
            return None
        self._gone.add(entries[-1].base)
        return entries[-1].base


@dataclass
class Disk:
    """All that survives a process. `journal` is the random id of this disk's journal."""

    journal: bytes
    promises: dict[Digest, Acceptor] = field(default_factory=dict)
    contributions: dict[Digest, tuple[Contribution, tuple[Digest, ...]]] = field(default_factory=dict)
    floor: frozenset[Digest] = frozenset()  # where the chain stood at the last prune
    residuals: Rests = field(default_factory=Rests)
    log: list[Link] = field(default_factory=list)
    states: dict[Digest, OuterState] = field(default_factory=dict)  # the newest two
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    generation: int = 0  # how often this peer was started from it
    file: JournalFile | None = None  # the journal's real bytes, in some seeds

    # The journal.

    def save(self, parent: Digest, acceptor: Acceptor) -> None:
        self.promises[parent] = acceptor
        if self.file is not None:
            self.file.save(parent, acceptor)

    def save_torn(self, parent: Digest, acceptor: Acceptor, dice: random.Random) -> bool:
        """The process dies in the midst of it; whether the record is there all the same."""
        whole = dice.random() < 0.5 if self.file is None else self.file.tear(parent, acceptor, dice)
        if whole:
            self.promises[parent] = acceptor
        return whole

    def contribute(self, base: Digest, own: Contribution, leaves: tuple[Digest, ...]) -> None:
        self.contributions[base] = own, leaves
        if self.file is not None:
            self.file.contribute(base, OwnContribution(own, leaves))

    def prune(self, keep: frozenset[Digest], tip: Digest) -> None:
        self.promises = {parent: kept for parent, kept in self.promises.items() if parent in keep}
        self.contributions = {base: own for base, own in self.contributions.items() if base in keep}
        self.floor = frozenset({tip})
        if self.file is not None:
            self.file.prune(keep, tip)

    def read_back(self) -> bool:
        """At a start: take what the real bytes say; whether that is all that was written, and still counts."""
        if self.file is None:
            return True
        self.file.reopen()
        promises, self.promises = self.promises, dict(self.file.promises)
        own, self.contributions = self.contributions, {
            base: (own.contribution, own.leaves) for base, own in self.file.contributions.items()}
        self.floor = self.file.floor  # what was pruned is there until the file is compacted
        whole = promises.items() <= self.promises.items() and own.items() <= self.contributions.items()
        return whole and self.file.id == self.journal

    def damage_journal(self, journal: bytes, dice: random.Random) -> bool:
        """A bit flips in the middle: what the journal held is not known any more. Whether that is seen."""
        seen = self.file is None or self.file.damage(dice, journal)
        self.lose_journal(journal)
        return seen

    def lose_journal(self, journal: bytes) -> None:
        """Begin an empty one, under another id."""
        self.journal = journal
        if self.file is not None and self.file.id != journal:
            self.file.begin(journal)
        self.promises.clear()
        self.contributions.clear()
        self.floor = frozenset()

    def save_state(self, state: OuterState) -> None:
        momentum = None if state.momentum is None else state.momentum.copy()
        self.states[state.parent] = OuterState(
            state.parent, state.round, state.tokens, state.params.copy(), momentum)
        for old in list(self.states)[:-2]:
            del self.states[old]
