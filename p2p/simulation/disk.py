"""A peer's disk in memory: journal, log, contributions, states and blobs, with what a kill or a power cut leaves.

Stands for `run_store`, the journal and `blobs` with the same meaning: what `Save` and the log write is durable at once,
blobs are durable once they were synced. Knows no protocol. `peer` writes it, `faults` damage it, `watch` looks into it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from atoll.p2p.blobs import BlobStore
from atoll.p2p.residuals import MemoryResiduals
from atoll.p2p.round.synod import Acceptor
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


@dataclass
class Disk:
    """All that survives a process. `journal` is the random id of this disk's journal."""

    journal: bytes
    promises: dict[Digest, Acceptor] = field(default_factory=dict)
    contributions: dict[Digest, tuple[Contribution, tuple[Digest, ...]]] = field(default_factory=dict)
    floor: frozenset[Digest] = frozenset()  # what the last prune kept
    residuals: MemoryResiduals = field(default_factory=MemoryResiduals)
    log: list[Link] = field(default_factory=list)
    states: dict[Digest, OuterState] = field(default_factory=dict)  # the newest two
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    generation: int = 0  # how often this peer was started from it

    def lose_journal(self, journal: bytes) -> None:
        """The journal was damaged in the middle: what it held is not known any more."""
        self.journal = journal
        self.promises.clear()
        self.contributions.clear()
        self.floor = frozenset()

    def save_state(self, state: OuterState) -> None:
        momentum = None if state.momentum is None else state.momentum.copy()
        self.states[state.parent] = OuterState(
            state.parent, state.round, state.tokens, state.params.copy(), momentum)
        for old in list(self.states)[:-2]:
            del self.states[old]
