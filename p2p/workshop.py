"""The heavy arithmetic of a round, on stored blobs and the outer state in memory: encode, reduce, step, commit.

Part by part, so that beyond the state's own vectors only a few parts are in memory at once. Synchronous; the service
runs it in worker threads, the state's methods in one thread of their own. The bytes are decided in `atoll.protocol`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atoll.p2p.blobs import BlobStore
from atoll.p2p.round.effects import Source
from atoll.protocol import canonical
from atoll.protocol.certificate import Certificate
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import Digest, array_digest, content_digest, state_digest
from atoll.protocol.errors import MalformedError, MismatchError, NonFiniteError
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Manifest
from atoll.protocol.messages import BlobKind
from atoll.protocol.outer_step import PartReducer, step_part

Vector = npt.NDArray[np.float32]


@dataclass
class OuterState:
    """fp32 outer parameters, outer momentum where the run has any, and counters. Replaced in place at each commit."""

    parent: Digest
    round: int
    tokens: int
    params: Vector
    momentum: Vector | None

    @property
    def vectors(self) -> list[Vector]:
        return [self.params] if self.momentum is None else [self.params, self.momentum]

    def chunks(self, layout: Layout) -> list[Digest]:
        """Digest of every chunk: the parameters' parts, then the momentum's."""
        return [array_digest(vector[bounds]) for vector in self.vectors for bounds in layout]

    def digest(self, layout: Layout) -> Digest:
        return state_digest(self.round, self.tokens, self.chunks(layout))


def load_state(
    path: Path, manifest: Manifest, parent: Digest, number: int, tokens: int, expected: Digest
) -> OuterState:
    """Read a state file and hold it against the digest it must have. Raises MismatchError."""
    vectors = 1 if manifest.draft.outer.momentum == 0 else 2
    size = vectors * 4 * manifest.genesis.numel
    if path.stat().st_size != size:
        raise MismatchError(f"{path} has {path.stat().st_size} bytes, this run's state has {size}.")
    values = np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
    numel = manifest.genesis.numel
    state = OuterState(parent, number, tokens, values[:numel], values[numel:] if vectors == 2 else None)
    if state.digest(manifest.layout) != expected:
        raise MismatchError(f"{path} is damaged: it does not have the digest {expected.hex()[:16]}….")
    return state


class Workshop:
    def __init__(self, manifest: Manifest, blobs: BlobStore, state: OuterState) -> None:
        self.layout, self.blobs, self.state = manifest.layout, blobs, state
        self._outer = manifest.draft.outer
        self._contribution = codec(manifest.draft.exchange.contribution_codec)
        self._gather = codec(manifest.draft.exchange.gather_codec)

    def encode(self, parent: Digest, vector: Vector) -> tuple[Digest, tuple[Digest, ...]]:
        """Encode and store a `(numel,) float32` pseudo-gradient; its root and its parts' digests.

        Raises NonFiniteError.
        """
        leaves = []
        for bounds in self.layout:
            data = self._contribution.encode(np.ascontiguousarray(vector[bounds]))
            leaves.append(content_digest(data))
            self.blobs.put(BlobKind.PART, parent, leaves[-1], data)
        listing = canonical.encode(leaves)
        root = content_digest(listing)
        self.blobs.put(BlobKind.PART, parent, root, listing)
        return root, tuple(leaves)

    def reduce(self, parent: Digest, part: int, sources: tuple[Source, ...]) -> tuple[Digest | None, list[Source]]:
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
        self.blobs.put(BlobKind.RESULT, parent, digest, data)
        return digest, []

    def step(self, parent: Digest, part: int, result: Digest) -> tuple[Digest, ...] | None:
        """Digests of the next state's chunks of one part; None if the result is unusable or the state has moved on."""
        if parent != self.state.parent:
            return None
        try:
            return tuple(array_digest(vector) for vector in self._next(part, result))
        except (MalformedError, NonFiniteError, KeyError):
            return None

    def commit(self, certificate: Certificate) -> None:
        """Take the outer step in place. The caller has seen every part's digest come out right.

        Raises MismatchError if the state that results is not the certified one.
        """
        value, chunks = certificate.value, []
        for part, entry in enumerate(value.parts):
            after, bounds = self._next(part, entry.digest), self.layout.bounds(part)
            for vector, values in zip(self.state.vectors, after, strict=True):
                vector[bounds] = values
            chunks.append([array_digest(values) for values in after])
        self.state.parent, self.state.round, self.state.tokens = certificate.id, value.round, value.tokens
        ordered = [chunk[section] for section in range(len(self.state.vectors)) for chunk in chunks]
        if state_digest(value.round, value.tokens, ordered) != value.state:
            raise MismatchError(f"the state after round {value.round} is not the certified one.")

    def _next(self, part: int, result: Digest) -> list[Vector]:
        bounds = self.layout.bounds(part)
        average = self._gather.decode(self.blobs.read(result), self.layout.size(part))
        momentum = None if self.state.momentum is None else self.state.momentum[bounds]
        params, moved = step_part(
            self.state.params[bounds],
            momentum,
            average,
            learning_rate=self._outer.learning_rate,
            momentum_factor=self._outer.momentum,
        )
        return [params] if moved is None else [params, moved]
