"""`int8`: blocks of 256 elements, each with its largest magnitude as scale: 8.125 bits per parameter.

Format: one little-endian binary32 scale per block, all blocks in order, then one signed byte per element, in order.
Block k holds the elements 256 k to 256 k + 255; the last block may be shorter, and nothing is padded.

Encode, block by block, every operation rounded to binary32 by itself:

    a = largest |x| of the block
    s = 0 if a < 2^-100 else a / 127          (a division, not a multiplication by a reciprocal)
    c = rint(x / s), and c = 0 where s is 0    (a division; to nearest, ties to even)

No clip is needed: s >= (a / 127)(1 - 2^-24), so |x / s| <= 127 (1 + 2^-23) rounds to 127 or less, and c is in
-127..127. Below 2^-100 a block is zero: then every scale and every quotient that matters is a normal number, and the
format does not depend on subnormals at all.

Decode: x' = float32(c) * s, one multiplication. The sign of a zero or of an x that rounds to c = 0 is not kept.

Decode refuses a scale that is neither +0 nor a number from 2^-100 / 127 to 2^40 / 127 (both rounded to binary32), the
byte -128, and a byte that is not 0 in a block whose scale is 0.

Error bound, for every element: |decode(encode(x)) - x| <= a / 254 * (1 + 2^-15) where a >= 2^-100, else < 2^-100. Over
heavy tails (Student's t with 3 degrees of freedom) the relative L2 error is about 1.7 %, over Gaussians 0.65 %.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from atoll.protocol.codecs.bounds import (
    INFINITY_BITS,
    MAGNITUDE_MASK,
    MAX_MAGNITUDE_BITS,
    as_float,
    check_magnitude,
    check_numel,
    check_size,
    check_vector,
)
from atoll.protocol.codecs.port import CHUNK_ELEMENTS, MAX_MAGNITUDE, Vector
from atoll.protocol.errors import MalformedError, NonFiniteError

BLOCK = 256
_LEVELS = np.float32(127)
_ZERO, _ONE = np.float32(0), np.float32(1)
_SMALLEST = np.float32(2.0**-100)
_SMALLEST_SCALE_BITS = int((_SMALLEST / _LEVELS).view(np.uint32))
_LARGEST_SCALE_BITS = int((np.float32(MAX_MAGNITUDE) / _LEVELS).view(np.uint32))


class Int8:
    name: str = "int8"
    error_feedback: bool = False

    def encoded_size(self, numel: int) -> int:
        return check_numel(numel) + 4 * -(-numel // BLOCK)

    def encode(self, values: Vector) -> bytes:
        numel = check_vector(values).size
        encoded = np.empty(self.encoded_size(numel), np.uint8)
        scales, codes = _views(encoded, numel)
        scratch = np.empty(min(numel, CHUNK_ELEMENTS), np.float32)
        for blocks, elements, width in _chunks(numel):
            rows = values[elements].reshape(-1, width)
            work = scratch[: rows.size].reshape(-1, width)
            magnitudes = np.bitwise_and(rows.view(np.uint32), MAGNITUDE_MASK, out=work.view(np.uint32))
            largest_bits = np.maximum.reduce(magnitudes, axis=1)
            check_magnitude(int(np.maximum.reduce(largest_bits)), "the vector to encode", MAX_MAGNITUDE_BITS)
            largest = largest_bits.view(np.float32)
            scale = np.where(largest < _SMALLEST, _ZERO, np.divide(largest, _LEVELS))
            divisor = np.where(scale == _ZERO, _ONE, scale)  # by 1, elements below 2^-100 round to 0
            np.divide(rows, divisor[:, np.newaxis], out=work)
            np.rint(work, out=work)
            scales[blocks] = scale
            np.copyto(codes[elements].reshape(-1, width), work, casting="unsafe")
        return encoded.tobytes()

    def decode(self, data: bytes | memoryview, numel: int) -> Vector:
        check_size(data, self.encoded_size(numel), self.name, numel)
        scales, codes = _views(np.frombuffer(data, np.uint8), numel)
        scales = scales.astype(np.float32)
        _check_scales(scales)
        if int(np.minimum.reduce(codes)) < -127:
            raise MalformedError("an int8 encoding holds the code -128, which no encoder writes")
        values = np.empty(numel, np.float32)
        for blocks, elements, width in _chunks(numel):
            rows, scale = values[elements].reshape(-1, width), scales[blocks]
            chunk_codes = codes[elements].reshape(-1, width)
            if not np.logical_and.reduce(scale.view(np.uint32)) and chunk_codes[scale == _ZERO].any():
                raise MalformedError("an int8 encoding holds codes in a block whose scale is zero")
            np.copyto(rows, chunk_codes)
            np.multiply(rows, scale[:, np.newaxis], out=rows)
        return values


def _check_scales(scales: Vector) -> None:
    bits = scales.view(np.uint32)
    largest = int(np.maximum.reduce(bits))
    if largest & ~int(MAGNITUDE_MASK):
        raise MalformedError("an int8 encoding holds a scale with a minus sign")
    if largest > _LARGEST_SCALE_BITS:
        shown = "not finite" if largest >= INFINITY_BITS else f"{as_float(largest):.3g}"
        raise NonFiniteError(f"an int8 scale is {shown}, at most {as_float(_LARGEST_SCALE_BITS):.3g} makes sense")
    if np.logical_or.reduce((bits != 0) & (bits < _SMALLEST_SCALE_BITS)):
        raise MalformedError("an int8 encoding holds a scale so small that its encoder writes zero instead")


def _views(encoded: npt.NDArray[np.uint8], numel: int) -> tuple[Vector, npt.NDArray[np.int8]]:
    """Scales and codes inside the encoded bytes, without a copy. Scales are little-endian on every host."""
    split = 4 * -(-numel // BLOCK)
    return encoded[:split].view("<f4"), encoded[split:].view(np.int8)


def _chunks(numel: int) -> Iterator[tuple[slice, slice, int]]:
    """(blocks, elements, width of a block) of each stretch: whole blocks, a scratch buffer at a time, then the rest."""
    whole = numel - numel % BLOCK
    for start in range(0, whole, CHUNK_ELEMENTS):
        stop = min(start + CHUNK_ELEMENTS, whole)
        yield slice(start // BLOCK, stop // BLOCK), slice(start, stop), BLOCK
    if whole < numel:
        yield slice(whole // BLOCK, whole // BLOCK + 1), slice(whole, numel), numel - whole
