"""Digests: BLAKE3, 32 bytes, each in a domain of its own, and the root of the outer state.

The outer state's canonical bytes are little-endian float32. They are cut into *parts* of `part_elements` elements
(the last one may be shorter); part i of the outer parameters is chunk i, and, where the outer optimizer has momentum,
part i of the momentum is chunk n + i. The state digest is the root over the counters and all chunk digests in order.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from atoll.protocol import canonical

Digest = bytes
DIGEST_BYTES = 32
ZERO_DIGEST: Digest = bytes(DIGEST_BYTES)


def content_digest(data: bytes | memoryview) -> Digest:
    """BLAKE3 of the bytes as they are: the name under which a blob is stored, sent and asked for."""
    return blake3(data).digest()


def array_digest(values: npt.NDArray[np.float32]) -> Digest:
    """`content_digest` of a C-contiguous float32 vector's little-endian bytes."""
    little = np.ascontiguousarray(values, dtype="<f4")
    return blake3(little.data.cast("B")).digest()


def tree_digest(domain: str, tree: object) -> Digest:
    """BLAKE3 in `derive_key` mode (context = domain) over a tree's canonical bytes."""
    return blake3(canonical.encode(tree), derive_key_context=f"atoll 1 {domain}").digest()


def root_digest(domain: str, leaves: Iterable[Digest]) -> Digest:
    """Root over an ordered list of digests: BLAKE3 in `derive_key` mode over their concatenation."""
    return blake3(b"".join(leaves), derive_key_context=f"atoll 1 {domain}").digest()


def state_digest(round_number: int, tokens: int, chunks: Sequence[Digest]) -> Digest:
    """Digest of an outer state: its counters and its chunks, parameters first, then momentum where there is one."""
    return tree_digest("outer state", [round_number, tokens, len(chunks), root_digest("outer state chunks", chunks)])
