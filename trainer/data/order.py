"""In which order a peer reads its sequences: a permutation of its own in every epoch, computed from integers alone.

A Feistel network over the smallest square domain of bits, walked until it falls inside (Black and Rogaway, "Ciphers
with arbitrary finite domains"): any position of any epoch is found directly, in no memory, and is the same on every
machine and NumPy version, which `Generator.permutation` does not promise.
"""

import numpy as np
import numpy.typing as npt

from atoll.protocol.digest import tree_digest

_ROUNDS = 8

Indices = npt.NDArray[np.int64]


def permuted(positions: Indices, count: int, seed: int, peer_id: bytes, epoch: int) -> Indices:
    """Where `positions` (each below `count`) of an epoch lie in the corpus: a bijection of `range(count)`."""
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    keys = _keys(seed, peer_id, epoch)
    values = _feistel(positions.astype(np.uint64), keys, half)
    outside = values >= count
    while outside.any():
        values[outside] = _feistel(values[outside], keys, half)
        outside = values >= count
    return values.astype(np.int64)


def _keys(seed: int, peer_id: bytes, epoch: int) -> npt.NDArray[np.uint64]:
    halves = [tree_digest("data order", [seed, peer_id, epoch, number]) for number in range(_ROUNDS // 4)]
    return np.frombuffer(b"".join(halves), "<u8").astype(np.uint64)


def _feistel(values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], half: np.uint64) -> npt.NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014); multiplication wraps, as arrays of uint64 do."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
