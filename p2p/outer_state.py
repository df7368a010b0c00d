"""The outer state in memory and its way from file to file: read, checked against its digest, stepped in place.

Part by part, so that beyond the state's own vectors only one part is in memory at a time. Knows blobs and certificates,
no chain and no run's folder. Used by `workshop`, which serves a round, and `rebuild`, which replays a lineage.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atoll.protocol.certificate import Certificate
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import ZERO_DIGEST, Digest, array_digest, content_digest, state_digest
from atoll.protocol.errors import MismatchError, MissingBytesError
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Manifest
from atoll.protocol.outer_step import step_part

Vector = npt.NDArray[np.float32]
Chunks = tuple[Digest, ...]
"""Digests of one part: of its parameters, then of its momentum where there is one."""


@dataclass
class OuterState:
    """fp32 outer parameters, outer momentum where the run has any, and counters. Replaced in place at each commit."""

    parent: Digest  # the certificate that made it; genesis: the run_id
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

    def become(self, other: "OuterState") -> None:
        """Take another state's values into the vectors that are there: whoever holds them sees the new ones."""
        for vector, values in zip(self.vectors, other.vectors, strict=True):
            np.copyto(vector, values)
        self.parent, self.round, self.tokens = other.parent, other.round, other.tokens


class Results(Protocol):
    """Where a stepper finds the bytes of results: `BlobStore`, or a reader that leaves the disk as it is."""

    def size(self, digest: Digest) -> int | None: ...
    def read(self, digest: Digest) -> bytes: ...  # raises KeyError for bytes that are gone


class Stepper:
    """Takes outer steps with stored results."""

    def __init__(self, manifest: Manifest, blobs: Results) -> None:
        self.layout, self._blobs, self._outer = manifest.layout, blobs, manifest.draft.outer
        self._gather = codec(manifest.draft.exchange.gather_codec)

    def part(self, state: OuterState, part: int, data: bytes) -> list[Vector]:
        """Next parameters, and momentum where there is one, of a part. Raises MalformedError, NonFiniteError."""
        bounds = self.layout.bounds(part)
        params, moved = step_part(
            state.params[bounds],
            None if state.momentum is None else state.momentum[bounds],
            self._gather.decode(data, self.layout.size(part)),
            learning_rate=self._outer.learning_rate,
            momentum_factor=self._outer.momentum,
        )
        return [params] if moved is None else [params, moved]

    def chunks(self, state: OuterState, part: int) -> Chunks:
        """Digests of a part as it is."""
        bounds = self.layout.bounds(part)
        return tuple(array_digest(vector[bounds]) for vector in state.vectors)

    def advance(self, state: OuterState, certificate: Certificate, known: dict[int, Chunks]) -> dict[int, Chunks]:
        """Take the step in place; the digests of the new chunks by part. `known` are digests of the present ones.

        Raises MissingBytesError, before anything has changed if the store knows that results are gone, and
        MismatchError if the state that results is not the certified one; after either the state may be half stepped.
        """
        value, chunks = certificate.value, dict[int, Chunks]()
        self.check_bytes(certificate)
        for part, entry in enumerate(value.parts):
            if entry.digest == ZERO_DIGEST:  # nobody contributed: the part stays
                chunks[part] = known[part] if part in known else self.chunks(state, part)
                continue
            after, bounds = self.part(state, part, self._result(certificate, entry.digest)), self.layout.bounds(part)
            for vector, values in zip(state.vectors, after, strict=True):
                vector[bounds] = values
            chunks[part] = tuple(array_digest(values) for values in after)
        state.parent, state.round, state.tokens = certificate.id, value.round, value.tokens
        ordered = [chunks[part][section] for section in range(len(state.vectors)) for part in range(len(chunks))]
        if state_digest(value.round, value.tokens, ordered) != value.state:
            raise MismatchError(f"the state after round {value.round} is not the certified one.")
        return chunks

    def check_bytes(self, certificate: Certificate) -> None:
        """Raise MissingBytesError unless the store has all results of a certificate."""
        for entry in certificate.value.parts:
            if entry.digest != ZERO_DIGEST and self._blobs.size(entry.digest) is None:
                raise _missing(certificate)

    def _result(self, certificate: Certificate, name: Digest) -> bytes:
        try:
            data = self._blobs.read(name)
        except KeyError as error:
            raise _missing(certificate) from error
        if content_digest(data) != name:  # damaged on the disk: as good as gone
            raise _missing(certificate)
        return data


def load_state(
    path: Path, manifest: Manifest, parent: Digest, number: int, tokens: int, expected: Digest
) -> OuterState:
    """Read a state file and hold it against the digest it must have. Raises MismatchError, OSError."""
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


def load_genesis(path: Path, manifest: Manifest) -> OuterState:
    """The state before round 1. Raises MismatchError if the file is not this run's genesis."""
    if state_digest(0, 0, genesis_chunks(path, manifest)) != manifest.genesis.digest:
        raise MismatchError(f"{path} is damaged: remove it, and it is fetched from peers again.")
    params = np.fromfile(path, dtype="<f4").astype(np.float32, copy=False)
    momentum = np.zeros_like(params) if manifest.draft.outer.momentum > 0 else None
    return OuterState(manifest.run_id, 0, 0, params, momentum)


def genesis_chunks(path: Path, manifest: Manifest) -> list[Digest]:
    """Chunk digests of genesis, read part by part: the parameters', and zeros for the momentum where there is one."""
    if path.stat().st_size != 4 * manifest.genesis.numel:
        raise MismatchError(
            f"{path} has {path.stat().st_size} bytes, this run's genesis has {4 * manifest.genesis.numel}."
        )
    layout = manifest.layout
    values = np.memmap(path, dtype="<f4", mode="r")
    chunks = [array_digest(np.array(values[bounds], dtype=np.float32)) for bounds in layout]
    if manifest.draft.outer.momentum > 0:
        chunks += [array_digest(np.zeros(layout.size(part), np.float32)) for part in range(layout.parts)]
    return chunks


def _missing(certificate: Certificate) -> MissingBytesError:
    return MissingBytesError(
        f"results of round {certificate.value.round} are not on this disk: they have to be fetched from peers again.",
        certificate.id,
    )
