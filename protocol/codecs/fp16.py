"""`fp16`: IEEE 754 binary16, 16 bits per parameter, no scale.

Format: `numel` little-endian binary16 values, in order.

Encode, element by element: y = min(max(x, -65504), 65504), then the conversion of y to binary16 with rounding to
nearest, ties to even, subnormal results included. The clip comes before the conversion, or 65520 and more would become
infinity. Signs of zeros are kept. Decode is exact; bytes with an all-ones exponent (infinity, NaN) are refused.

Error bound, for every element: |decode(encode(x)) - x| <= max(2^-11 |x|, 2^-25) where |x| <= 65504; a larger x
decodes to 65504 with x's sign. Elements up to 2^-25 decode to zero: without a scale, this codec is no choice for
gradients that small.

NumPy's own conversion takes a branch per element (0.5 GB/s). `encode` does the same in vector operations: with E the
exponent of |y|, at least -14, adding 2^(E + 13) in float32 rounds |y| to a multiple k of 2^(E - 10) and leaves k in the
low bits, and (E + 14) * 1024 + k are the bits of the binary16, also where k carries into the exponent (k = 2048) and
where the result is subnormal (E = -14, k < 1024).
"""

import numpy as np
import numpy.typing as npt

from atoll.protocol.codecs.bounds import MAGNITUDE_MASK, check_magnitude, check_numel, check_size, check_vector
from atoll.protocol.codecs.port import CHUNK_ELEMENTS, Vector
from atoll.protocol.errors import NonFiniteError

LARGEST = 65504.0
_LARGEST_BITS = np.uint32(np.float32(LARGEST).view(np.uint32))
_EXPONENT_MASK = np.uint32(0xFF << 23)
_SMALLEST_EXPONENT = np.uint32((127 - 14) << 23)
_ROUNDER = np.uint32(13 << 23)
_REBIAS = np.uint32((127 - 14) << 10)
_SIGN = np.uint32(0x8000)
_HALF_MAGNITUDE_MASK = np.uint16(0x7FFF)
_HALF_LARGEST_BITS = 0x7BFF

_Words = npt.NDArray[np.uint32]


class Fp16:
    name: str = "fp16"
    error_feedback: bool = False

    def encoded_size(self, numel: int) -> int:
        return 2 * check_numel(numel)

    def encode(self, values: Vector) -> bytes:
        words = check_vector(values).view(np.uint32)
        halves: npt.NDArray[np.uint16] = np.empty(values.size, "<u2")
        scratch = np.empty((3, min(values.size, CHUNK_ELEMENTS)), np.uint32)
        for start in range(0, values.size, CHUNK_ELEMENTS):
            chunk = words[start : start + CHUNK_ELEMENTS]
            _to_half(chunk, scratch[:, : chunk.size])
            np.copyto(halves[start : start + CHUNK_ELEMENTS], scratch[0, : chunk.size], casting="unsafe")
        return halves.tobytes()

    def decode(self, data: bytes | memoryview, numel: int) -> Vector:
        check_size(data, self.encoded_size(numel), self.name, numel)
        halves: npt.NDArray[np.float16] = np.frombuffer(data, "<f2")
        values = np.empty(numel, np.float32)
        for start in range(0, numel, CHUNK_ELEMENTS):
            chunk = halves[start : start + CHUNK_ELEMENTS]
            magnitudes = np.bitwise_and(chunk.view("<u2"), _HALF_MAGNITUDE_MASK)
            if int(np.maximum.reduce(magnitudes)) > _HALF_LARGEST_BITS:
                raise NonFiniteError("an fp16 encoding holds an infinity or a NaN")
            np.copyto(values[start : start + CHUNK_ELEMENTS], chunk)
        return values


def _to_half(words: _Words, scratch: _Words) -> None:
    """Write the binary16 bits of float32 bits into the first of three rows of scratch (see the module's docstring)."""
    magnitude, exponent, rounder = scratch
    np.bitwise_and(words, MAGNITUDE_MASK, out=magnitude)
    check_magnitude(int(np.maximum.reduce(magnitude)), "the vector to encode")
    np.minimum(magnitude, _LARGEST_BITS, out=magnitude)
    np.bitwise_and(magnitude, _EXPONENT_MASK, out=exponent)
    np.maximum(exponent, _SMALLEST_EXPONENT, out=exponent)
    np.add(exponent, _ROUNDER, out=rounder)
    np.add(magnitude.view(np.float32), rounder.view(np.float32), out=magnitude.view(np.float32))
    np.subtract(magnitude, rounder, out=magnitude)
    np.right_shift(exponent, 13, out=exponent)
    np.subtract(exponent, _REBIAS, out=exponent)
    np.add(magnitude, exponent, out=magnitude)
    np.right_shift(words, 16, out=exponent)
    np.bitwise_and(exponent, _SIGN, out=exponent)
    np.bitwise_or(magnitude, exponent, out=magnitude)
