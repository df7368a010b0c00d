"""The arithmetic that turns contributions into the next outer state, the same bytes on every CPU.

The average of a part is the weighted mean of what its contributors sent; the outer step is SGD with Nesterov momentum
on that average, the pseudo-gradient of DiLoCo (Douillard et al., arXiv 2311.08105, algorithm 1; the momentum's form is
that of Sutskever et al. 2013 as PyTorch writes it). Knows no models, peers or files, and no torch: `p2p` averages,
and every peer steps.

All arithmetic is IEEE 754 binary32, round to nearest, ties to even, subnormals alive; each `*`, `+`, `-`, `/` below is
rounded by itself (no fused multiply-add), and one NumPy ufunc does one of them. Learning rate and momentum are binary64
in the manifest and are rounded once to binary32 before anything else.

Average over the contributions i in ascending PeerID, with integer weights w_i whose sum stays below 2^24, where float32
holds every integer:

    acc = +0;   acc = acc + float32(w_i) * x_i   for each i in order;   average = acc / float32(sum of w_i)

A mean lies within the values that it averages; where rounding alone lifts one above `MAX_MAGNITUDE` it is clipped to
that, so that every average has an encoding.

Outer step, g the average as decoded from the certified bytes, mu the momentum factor, lr the learning rate:

    mu = 0:  p' = p - lr * g                                             (no momentum vector exists)
    else:    m' = mu * m + g;   p' = p - lr * (g + mu * m')               (m is +0 everywhere at genesis)

Addition and multiplication of two binary32 values commute bit for bit, so the order of the operands is free.
"""

import math

import numpy as np
import numpy.typing as npt

from atoll.protocol.codecs.bounds import INFINITY_BITS, check_magnitude, check_vector, largest_bits
from atoll.protocol.codecs.port import CHUNK_ELEMENTS, MAX_MAGNITUDE, Vector
from atoll.protocol.errors import MalformedError, NondeterministicCpuError
from atoll.protocol.manifest import WEIGHT_LIMIT

_LARGEST = np.float32(MAX_MAGNITUDE)
_LARGEST_BITS = int(_LARGEST.view(np.uint32))
_ROUNDED_UP_BITS = int(np.float32(2 * MAX_MAGNITUDE).view(np.uint32))


class PartReducer:
    """Weighted mean of one part, one contribution at a time: one accumulator of memory, however many peers."""

    def __init__(self, numel: int) -> None:
        self._sum: Vector = np.zeros(numel, np.float32)
        self._scratch: Vector = np.empty(min(numel, CHUNK_ELEMENTS), np.float32)
        self._weight = 0

    @property
    def weight(self) -> int:
        """Sum of the weights so far."""
        return self._weight

    def add(self, weight: int, values: Vector) -> None:
        """Add a decoded contribution, a `(numel,) float32` vector that is not kept.

        The caller adds in ascending PeerID; the order decides the bytes. Raises MalformedError for a weight below 1 or
        a sum of weights of 2^24 and more, ValueError for another shape. Nothing is added where it raises.
        """
        _check_shape(values, self._sum.size)
        if weight < 1 or self._weight + weight >= WEIGHT_LIMIT:
            raise MalformedError(f"weight {weight} on top of {self._weight}: each is at least 1, their sum below 2^24")
        factor = np.float32(weight)
        with np.errstate(all="ignore"):  # what overflows is refused in `average`
            for part in _chunks(values.size):
                total, chunk = self._sum[part], values[part]
                product = np.multiply(chunk, factor, out=self._scratch[: chunk.size])
                np.add(total, product, out=total)
        self._weight += weight

    def average(self) -> Vector:
        """The weighted mean so far, a new `(numel,) float32` vector with magnitudes of at most `MAX_MAGNITUDE`.

        Raises NonFiniteError where the sum is not finite or absurd, ValueError before the first `add`.
        """
        if not self._weight:
            raise ValueError("nothing has been added, so there is no average")
        with np.errstate(all="ignore"):
            mean = np.divide(self._sum, np.float32(self._weight))
        largest = largest_bits(mean)
        check_magnitude(largest, "an average", _ROUNDED_UP_BITS)
        return np.clip(mean, -_LARGEST, _LARGEST, out=mean) if largest > _LARGEST_BITS else mean


def step_part(
    params: Vector,
    momentum: Vector | None,
    average: Vector,
    *,
    learning_rate: float,
    momentum_factor: float,
) -> tuple[Vector, Vector | None]:
    """(next parameters, next momentum) of one part, or of any stretch of it: elements do not depend on each other.

    All are `(numel,) float32`; the results are new arrays, the arguments are left alone. `momentum` is None exactly
    where `momentum_factor` is 0, and then so is the next one. Raises NonFiniteError where a result is not finite,
    ValueError for shapes and factors that do not go together.
    """
    if (momentum is None) != (momentum_factor == 0):
        raise ValueError(f"a momentum vector belongs to a momentum factor other than 0, which is {momentum_factor}")
    if not math.isfinite(learning_rate) or not math.isfinite(momentum_factor):
        raise ValueError(f"learning rate {learning_rate} and momentum factor {momentum_factor} must be finite")
    _check_shape(average, check_vector(params).size)
    rate, factor = np.float32(learning_rate), np.float32(momentum_factor)
    next_params = np.empty_like(params)
    next_momentum = None
    update = np.empty(min(params.size, CHUNK_ELEMENTS), np.float32)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        if momentum is None:
            for part in _chunks(params.size):
                _descend(params[part], average[part], rate, update, next_params[part])
        else:
            _check_shape(momentum, params.size)
            next_momentum = np.empty_like(params)
            for part in _chunks(params.size):
                gradient, following = average[part], next_momentum[part]
                np.multiply(momentum[part], factor, out=following)
                np.add(following, gradient, out=following)
                ahead = np.multiply(following, factor, out=update[: gradient.size])
                np.add(ahead, gradient, out=ahead)
                _descend(params[part], ahead, rate, update, next_params[part])
    check_magnitude(largest_bits(next_params), "the next outer parameters", INFINITY_BITS - 1)
    if next_momentum is not None:
        check_magnitude(largest_bits(next_momentum), "the next outer momentum", INFINITY_BITS - 1)
    return next_params, next_momentum


def assert_denormals() -> None:
    """Raise NondeterministicCpuError if this thread flushes subnormals, as operands or as results.

    The mode belongs to a thread and is inherited by those it starts: `torch.set_flush_denormal(True)` and libraries
    built with -ffast-math switch it under NumPy's feet. Every worker that computes states or encodings calls this
    first. Looks at bits, since a comparison would flush its operands too. 16 elements reach the vector units.
    """
    normal = np.full(16, 2.0**-126, np.float32)
    made = np.multiply(normal, np.float32(0.5))
    taken = np.multiply(np.full(16, 1, np.uint32).view(np.float32), np.float32(2.0**30))
    if not _all_bits(made, 0x0040_0000) or not _all_bits(taken, int(np.float32(2.0**-119).view(np.uint32))):
        raise NondeterministicCpuError(
            "this thread flushes subnormal numbers to zero, so its results would differ from everybody else's: "
            "something called torch.set_flush_denormal(True) or loaded a library built with -ffast-math."
        )


def _descend(params: Vector, direction: Vector, rate: np.float32, scratch: Vector, out: Vector) -> None:
    update = np.multiply(direction, rate, out=scratch[: direction.size])
    np.subtract(params, update, out=out)


def _check_shape(values: Vector, numel: int) -> None:
    if check_vector(values).size != numel:
        raise ValueError(f"a vector of {values.size} elements where {numel} belong")


def _chunks(numel: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_ELEMENTS, numel)) for start in range(0, numel, CHUNK_ELEMENTS)]


def _all_bits(values: npt.NDArray[np.float32], bits: int) -> bool:
    return {int(word) for word in values.view(np.uint32)} == {bits}
