"""What a codec is: a pure, deterministic map between a float32 vector and bytes, with one contract for every codec.

A codec knows no sockets, no peers and no parts; callers cut a vector into parts (`protocol.layout`) and encode each one
by itself. The same interface serves both directions of a round: contributions and certified averages.

Determinism. All integers and floats on the wire are little-endian; arithmetic is IEEE 754 binary32 with rounding to
nearest, ties to even, and live subnormals, one operation at a time and never fused. Every codec says in its docstring,
to the bit, what it computes, so that another implementation can be written from it; `protocol.known_answer` checks it
at every start.

Closure. Every codec accepts and returns magnitudes of at most `MAX_MAGNITUDE`, and so does `PartReducer.average`.
Whatever decodes can be averaged, and whatever was averaged can be encoded: no contribution that passes `decode` can
make its owner fail later.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

MAX_MAGNITUDE = 2.0**40
"""Larger values than this (1.1e12) are absurd in a pseudo-gradient. Below it a weighted sum (weights add up to less
than 2^24) stays under 2^64, and the sum of squares of 2^44 elements under 2^124: neither overflows float32."""

CHUNK_ELEMENTS = 32_768
"""Elements that are worked on at a time: scratch memory stays in a core's cache and does not grow with the vector."""


class Codec(Protocol):
    """Stateless, so that one object may serve several threads at once."""

    @property
    def name(self) -> str:
        """The word in the manifest: `fp32`, `fp16`, `int8`, `top8`."""
        ...

    @property
    def error_feedback(self) -> bool:
        """Whether a peer adds what one encoding left out to its next gradient (`p2p.round.ledger`).

        Such a codec is for contributions alone: nobody keeps account of what a result leaves out.
        """
        ...

    def encoded_size(self, numel: int) -> int:
        """Exact number of bytes of `numel` encoded elements. Raises ValueError for fewer than one element."""
        ...

    def encode(self, values: Vector) -> bytes:
        """The bytes of a `(numel,) float32` C-contiguous vector, which is read and not kept.

        Raises NonFiniteError for NaN, infinity or a magnitude above `MAX_MAGNITUDE`; ValueError for another shape or
        type.
        """
        ...

    def decode(self, data: bytes | memoryview, numel: int) -> Vector:
        """The `(numel,) float32` vector behind bytes that a stranger sent; always a new array that the caller owns.

        Checks the exact size before it allocates. Raises MalformedError for bytes that `encode` cannot have made, and
        NonFiniteError where they stand for NaN, infinity or a magnitude above `MAX_MAGNITUDE`.
        """
        ...
