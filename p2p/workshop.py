"""The heavy arithmetic of a round, on stored blobs and the outer state in memory: encode, reduce, step, commit.

Part by part, so that beyond the state's own vectors only a few parts are in memory at once. Synchronous; the service
runs it in worker threads, the state's methods in one thread of their own. The bytes are decided in `atoll.protocol`.

Where the contribution codec uses error feedback, encoding and committing keep the ledger: `encode` has this peer's rest
written down before anybody can see the contribution, and only `commit` and `adopt` move the residual.
"""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from atoll.p2p.blobs import BlobStore
from atoll.p2p.outer_state import Chunks, OuterState, Stepper
from atoll.p2p.rebuild import rebuild
from atoll.p2p.residuals import MemoryResiduals, Residuals
from atoll.p2p.round.effects import Source
from atoll.p2p.round.ledger import Entry, Fixed, Ledger, compose, remainder
from atoll.p2p.run_store import RunStore
from atoll.protocol import canonical
from atoll.protocol.certificate import Certificate
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import ZERO_DIGEST, Digest, array_digest, content_digest
from atoll.protocol.errors import MalformedError, NonFiniteError
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import Manifest
from atoll.protocol.messages import BlobKind
from atoll.protocol.outer_step import PartReducer

__all__ = ["RESIDUAL_ROUNDS", "OuterState", "Workshop"]

Vector = npt.NDArray[np.float32]

RESIDUAL_ROUNDS = 8
"""Rests are kept for this many certificates (fewer where `retain_rounds` is less): 8 bytes per element and contribution
on disk. A switch to a lineage that branched off earlier starts with a residual of zero."""


class Workshop:
    """`lineage` leads from genesis to `state`; `store` is the run's folder, which `adopt` rebuilds from.

    `own`, this peer's id, is needed only where the codec uses error feedback; then `residuals` keep this peer's rests,
    in memory if nothing else is given.
    """

    def __init__(
        self,
        manifest: Manifest,
        blobs: BlobStore,
        state: OuterState,
        *,
        lineage: Sequence[Certificate] = (),
        store: RunStore | None = None,
        own: PeerId | None = None,
        residuals: Residuals | None = None,
    ) -> None:
        self.layout, self.blobs, self.state = manifest.layout, blobs, state
        self._store = store
        self._manifest, self._stepper = manifest, Stepper(manifest, blobs)
        self._contribution = codec(manifest.draft.exchange.contribution_codec)
        self._gather = codec(manifest.draft.exchange.gather_codec)
        self._chunks: dict[int, Chunks] = {}
        self._chunks_of: tuple[OuterState, Digest] = state, state.parent
        self._residuals: Residuals = residuals or MemoryResiduals()
        self._ledger_lock = threading.Lock()  # contributions are encoded in one thread, states committed in another
        self.ledger: Ledger | None = None
        if self._contribution.error_feedback:
            if own is None:
                raise ValueError(f"codec {self._contribution.name} uses error feedback: a ledger needs its peer's id")
            keep = min(RESIDUAL_ROUNDS, manifest.draft.exchange.retain_rounds)
            self.ledger = Ledger(own, manifest.run_id, self.layout.parts, keep, self._residuals.entries())
            self.ledger.follow(lineage)

    def encode(self, base: Digest, vector: Vector, weight: int = 1) -> tuple[Digest, tuple[Digest, ...]]:
        """Encode and store a `(numel,) float32` pseudo-gradient of this weight; its root and its parts' digests.

        Raises NonFiniteError.
        """
        leaves: list[Digest] = []
        if self.ledger is None:
            for bounds in self.layout:
                self._store_part(base, self._contribution.encode(np.ascontiguousarray(vector[bounds])), leaves)
            return self._store_root(base, leaves)
        with self._ledger_lock:
            residues = self.ledger.residues(base)
        sums: list[npt.NDArray[np.uint64]] = []
        self._residuals.write(base, self._encoded(base, vector, weight, residues, leaves, sums))
        root, parts = self._store_root(base, leaves)
        with self._ledger_lock:
            entry = Entry(base, self.ledger.round_of(base), weight, root, np.stack(sums))
            self._residuals.keep(entry)
            self.ledger.propose(entry)
        return root, parts

    def _encoded(
        self,
        base: Digest,
        vector: Vector,
        weight: int,
        residues: tuple[Entry | None, ...],
        leaves: list[Digest],
        sums: list[npt.NDArray[np.uint64]],
    ) -> Iterator[Fixed]:
        """Encode and store the parts, with feedback; what each leaves out, as it is to be kept."""
        cap = self._manifest.draft.exchange.residual_cap
        for part, bounds in enumerate(self.layout):
            composed = compose(vector[bounds], weight, self._residual(residues[part], part), cap)
            data = self._contribution.encode(composed.vector)
            self._store_part(base, data, leaves)
            rest, amounts = remainder(composed, weight, self._contribution.decode(data, self.layout.size(part)))
            sums.append(amounts)
            yield rest

    def _residual(self, held: Entry | None, part: int) -> Fixed | None:
        if held is None:
            return None
        rest = self._residuals.read(held, part)
        if rest is None and self.ledger is not None:
            with self._ledger_lock:
                self.ledger.lose(held)
        return rest

    def _store_part(self, base: Digest, data: bytes, leaves: list[Digest]) -> None:
        leaves.append(content_digest(data))
        self.blobs.put(BlobKind.PART, base, leaves[-1], data)

    def _store_root(self, base: Digest, leaves: list[Digest]) -> tuple[Digest, tuple[Digest, ...]]:
        listing = canonical.encode(leaves)
        root = content_digest(listing)
        self.blobs.put(BlobKind.PART, base, root, listing)
        return root, tuple(leaves)

    def reduce(self, base: Digest, part: int, sources: tuple[Source, ...]) -> tuple[Digest | None, list[Source]]:
        """Average one part; the stored result's digest, or None and the sources whose bytes are unusable."""
        size, bad = self.layout.size(part), []
        reducer = PartReducer(size)
        for source in sources:
            try:
                values = self._contribution.decode(self.blobs.read(source.digest), size)
            except (MalformedError, NonFiniteError, KeyError):  # KeyError: its round is over, or the disk lost it
                bad.append(source)
                continue
            reducer.add(source.weight, values)
        if bad:
            return None, bad
        average = reducer.average() if sources else np.zeros(size, np.float32)
        data = self._gather.encode(average)
        digest = content_digest(data)
        self.blobs.put(BlobKind.RESULT, base, digest, data)
        return digest, []

    def step(self, base: Digest, part: int, result: Digest) -> Chunks | None:
        """Digests of the next state's chunks of one part; None if the result is unusable or the state has moved on.

        The result ZERO_DIGEST leaves the part as it is. Raises KeyError if its bytes are not here, or were damaged on
        the disk: then they are dropped, and may be fetched again.
        """
        if base != self.state.parent:
            return None
        if result == ZERO_DIGEST:
            known = self._known()
            if part not in known:
                known[part] = self._stepper.chunks(self.state, part)
            return known[part]
        data = self.blobs.read(result)
        if content_digest(data) != result:
            self.blobs.drop(result)
            raise KeyError(result)
        try:
            after = self._stepper.part(self.state, part, data)
        except (MalformedError, NonFiniteError):
            return None
        return tuple(array_digest(vector) for vector in after)

    def commit(self, certificate: Certificate) -> None:
        """Take the outer step in place. The caller has seen every part's digest come out right.

        Raises MissingBytesError if results are gone, MismatchError if the state that results is not the certified one.
        """
        chunks = self._stepper.advance(self.state, certificate, self._known())
        self._chunks, self._chunks_of = chunks, (self.state, self.state.parent)
        if self.ledger is not None:
            with self._ledger_lock:
                self.ledger.settle(certificate.value)
                self._forget(self.ledger)

    def adopt(self, lineage: Sequence[Certificate]) -> None:
        """Put the state at the end of another lineage (from genesis, oldest first) into the vectors of this one.

        Raises MissingBytesError with the first certificate whose results are gone, or MismatchError; then nothing has
        changed. ValueError for a workshop without a run's folder. Needs memory for a second state while it works.
        """
        if self._store is None:
            raise ValueError("a workshop without a run's folder has nothing to rebuild a state from")
        self.state.become(rebuild(self._store, self.blobs, self._manifest, lineage))
        self.settle_at(lineage)

    def settle_at(self, lineage: Sequence[Certificate]) -> None:
        """Unwind the ledger to where `lineage` branches off, and settle what this peer contributed along it."""
        if self.ledger is not None:
            with self._ledger_lock:
                self.ledger.follow(lineage)
                self._forget(self.ledger)

    def _forget(self, ledger: Ledger) -> None:
        for base in ledger.forget():
            self._residuals.forget(base)

    def _known(self) -> dict[int, Chunks]:
        """Digests of the present state's chunks, as far as they were computed; also if another state was put here."""
        if self._chunks_of[0] is not self.state or self._chunks_of[1] != self.state.parent:
            self._chunks, self._chunks_of = {}, (self.state, self.state.parent)
        return self._chunks
