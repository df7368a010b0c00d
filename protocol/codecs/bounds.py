"""The checks that all codecs and the outer step share. They look at bits, so flushed subnormals cannot mislead them.

Knows nothing of any codec's format. The bits of a float32 without its sign, read as an unsigned integer, are in the
order of its magnitude, with infinity and then NaN above every finite value: one integer maximum answers "how large" and
"is it finite" at once, without a floating-point exception flag.
"""

import numpy as np
import numpy.typing as npt

from atoll.protocol.codecs.port import CHUNK_ELEMENTS, MAX_MAGNITUDE, Vector
from atoll.protocol.errors import MalformedError, NonFiniteError

MAGNITUDE_MASK = np.uint32(0x7FFF_FFFF)
MAX_MAGNITUDE_BITS = int(np.float32(MAX_MAGNITUDE).view(np.uint32))
INFINITY_BITS = 0x7F80_0000


def check_numel(numel: int) -> int:
    """`numel` if a vector of that many elements can be encoded, else ValueError."""
    if numel < 1:
        raise ValueError(f"a vector of {numel} elements has no encoding")
    return numel


def check_vector(values: Vector) -> Vector:
    """`values`, if it is a `(numel,) float32` C-contiguous vector in native byte order, else ValueError."""
    if values.dtype != np.float32 or values.ndim != 1 or not values.flags.c_contiguous or not values.size:
        found = f"{values.dtype} of shape {values.shape}"
        raise ValueError(f"a (numel,) float32 C-contiguous vector in native byte order is needed, not {found}")
    return values


def check_size(data: bytes | memoryview, size: int, name: str, numel: int) -> None:
    """Raise MalformedError unless `data` has exactly the `size` bytes that `numel` elements take."""
    found = memoryview(data).nbytes
    if found != size:
        raise MalformedError(f"{found} bytes of {name} for {numel} elements, which take {size}")


def largest_bits(values: Vector) -> int:
    """Bits of the largest magnitude in a `(numel,) float32` vector; above `INFINITY_BITS` where there is a NaN."""
    bits, largest = values.view(np.uint32), 0
    scratch = np.empty(min(values.size, CHUNK_ELEMENTS), np.uint32)
    for start in range(0, values.size, CHUNK_ELEMENTS):
        chunk = bits[start : start + CHUNK_ELEMENTS]
        magnitude = np.bitwise_and(chunk, MAGNITUDE_MASK, out=scratch[: chunk.size])
        largest = max(largest, int(np.maximum.reduce(magnitude)))
    return largest


def check_magnitude(largest: int, what: str, limit: int = MAX_MAGNITUDE_BITS) -> None:
    """Raise NonFiniteError if `largest`, the bits of a magnitude, is above `limit`, not finite, or a NaN."""
    if largest <= limit:
        return
    if largest >= INFINITY_BITS:
        raise NonFiniteError(f"{what} holds {'an infinity' if largest == INFINITY_BITS else 'a NaN'}")
    value, bound = as_float(largest), as_float(limit)
    raise NonFiniteError(f"{what} holds a magnitude of {value:.3g}, at most {bound:.3g} makes sense")


def as_float(bits: int) -> float:
    """The float32 that has these bits."""
    value: npt.NDArray[np.float32] = np.array([bits], np.uint32).view(np.float32)
    return float(value[0])
