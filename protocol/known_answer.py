"""Does this machine compute what all others compute? A self-test of the arithmetic that decides bytes, a few ms long.

Runs the outer step and every codec on small inputs that are made of integers and powers of two alone, and compares the
BLAKE3 digests of the results with constants. The daemon calls `check` before it joins anything; a CPU, a NumPy or a
floating-point mode that deviates ends in `FAILED(nondeterministic_cpu)` instead of a replica that nobody agrees with.

Inputs, for whoever writes another implementation: element i of `numbers(numel, seed)` is

    h = (i + seed) * 2654435761;   h ^= h >> 15;   h *= 2246822519;   h ^= h >> 13          (all modulo 2^32)
    (h >> 8) - 2^23, as a float32, times 2^-(23 + h % 24)                                   (exact)

and then the stretch [1024, 1280) is times 2^-126 (subnormal, rounded once), [1280, 1536) times 0, [2048, 2304) times
2^20. The digests are over the results' little-endian bytes, one after another, as the functions below produce them.
"""

from collections.abc import Iterator

import numpy as np
from blake3 import blake3

from atoll.protocol.codecs.port import Vector
from atoll.protocol.codecs.registry import CODECS
from atoll.protocol.errors import NondeterministicCpuError
from atoll.protocol.outer_step import PartReducer, assert_denormals, step_part

NUMEL = 5000
"""Whole blocks of int8 and a short one, and more than any vector unit holds; the last elements run in scalar code."""

ANSWERS = {
    "fp32 encode": "a0bf2b0aedb9cebd5567178e4bf3c100f7848cd2c81a273cbbdfa36fa4aebe03",
    "fp32 decode": "a0bf2b0aedb9cebd5567178e4bf3c100f7848cd2c81a273cbbdfa36fa4aebe03",
    "fp16 encode": "3abf0ab6ef8aecb15f285256aa07fe744fd8c36c6c11a9383fbf93b2f3786559",
    "fp16 decode": "af6940ef9b49ddc474fb4c7ec8a9adf7b852af39d1ade56026decfa2bc49c5ea",
    "int8 encode": "7ddbf20fe8b4f97d0b602ee12c52df636b96aa7fdcf9ad9bc4db64e72ae17a43",
    "int8 decode": "3099dd22d06af9827475bb7628e165ff1d929046952313e08dcc1dd8da501cc7",
    "top8 encode": "bd924a6443f08cccf68057dbf264140cc4e5841eab13eb0e01832792f815e7a0",
    "top8 decode": "d99b2a56787a00e9897c2d08c56d8f8c84ac8153d180d3b0553b9ad03a4573b4",
    "average": "f389f1dfb1addbb710f2cacad16da692673f3bbdd4c938785f6b8053e58943ad",
    "plain outer step": "155e735288c4271a022ca8e8832472932d5d256f318cb5ab1a41f290511eecb6",
    "Nesterov outer step": "96f70e8f8e85e18b606d9316c35a8805fc6962f8be0a36b0e9927653ebeac8bf",
}


def check() -> None:
    """Raise NondeterministicCpuError, with the operations that deviate, unless every answer is the known one.

    Looks at the calling thread: subnormals and rounding are a thread's own mode.
    """
    assert_denormals()
    found = answers()
    wrong = [name for name, answer in ANSWERS.items() if found[name] != answer]
    if wrong:
        raise NondeterministicCpuError(
            f"this machine's arithmetic differs from the known answers in {', '.join(wrong)}, so its results would "
            "differ from everybody else's: use another NumPy build or another machine, and report this CPU."
        )


def answers() -> dict[str, str]:
    """What this machine computes, by operation: hex of a BLAKE3 digest."""
    found = {}
    for name in CODECS:
        encoded, decoded = _coded(name)
        found[f"{name} encode"], found[f"{name} decode"] = _digest([encoded]), _digest(decoded)
    found["average"] = _digest([_average()])
    found["plain outer step"] = _digest(_outer_steps(1.0, 0.0))
    found["Nesterov outer step"] = _digest(_outer_steps(0.7, 0.9))
    return found


def numbers(numel: int, seed: int) -> Vector:
    """A `(numel,) float32` vector of heavy-tailed values, subnormals and zeros, the same on every machine."""
    hashed = (np.arange(numel, dtype=np.uint32) + np.uint32(seed)) * np.uint32(2_654_435_761)
    hashed ^= hashed >> np.uint32(15)
    hashed *= np.uint32(2_246_822_519)
    hashed ^= hashed >> np.uint32(13)
    mantissa = (hashed >> np.uint32(8)).astype(np.float32) - np.float32(1 << 23)
    power = ((np.uint32(127 - 23) - hashed % np.uint32(24)) << np.uint32(23)).view(np.float32)
    values: Vector = mantissa * power
    values[1024:1280] *= np.float32(2.0**-126)
    values[1280:1536] *= np.float32(0)
    values[2048:2304] *= np.float32(2.0**20)
    return values


def _coded(name: str) -> tuple[bytes, list[Vector]]:
    encoded = CODECS[name].encode(numbers(NUMEL, 1))
    return encoded, [CODECS[name].decode(encoded, NUMEL)]


def _average() -> Vector:
    reducer = PartReducer(NUMEL)
    for seed, weight in enumerate((1, 7, 320, 65_537, 9_999_991)):
        reducer.add(weight, numbers(NUMEL, 1000 * seed))
    return reducer.average()


def _outer_steps(learning_rate: float, momentum_factor: float) -> Iterator[Vector]:
    """Parameters and momentum of four outer steps from a fixed state."""
    params = numbers(NUMEL, 77)
    momentum = np.zeros(NUMEL, np.float32) if momentum_factor else None
    for seed in range(4):
        params, momentum = step_part(
            params,
            momentum,
            numbers(NUMEL, 5000 + seed),
            learning_rate=learning_rate,
            momentum_factor=momentum_factor,
        )
        yield params
        if momentum is not None:
            yield momentum


def _digest(pieces: Iterator[Vector] | list[Vector] | list[bytes]) -> str:
    hasher = blake3()
    for piece in pieces:
        hasher.update(piece if isinstance(piece, bytes) else piece.astype("<f4", copy=False).tobytes())
    return hasher.hexdigest()
