"""Digests are BLAKE3 of the bytes, each use in its own domain, and the state's root depends on all it stands for."""

import numpy as np
import pytest
from blake3 import blake3

from atoll.protocol import canonical
from atoll.protocol.digest import (
    DIGEST_BYTES,
    ZERO_DIGEST,
    array_digest,
    content_digest,
    root_digest,
    state_digest,
    tree_digest,
)

EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # published test vector of BLAKE3


def test_content_digest_is_plain_blake3():
    assert content_digest(b"").hex() == EMPTY
    assert content_digest(memoryview(b"abc")) == content_digest(b"abc") == blake3(b"abc").digest()
    assert len(ZERO_DIGEST) == len(content_digest(b"")) == DIGEST_BYTES


@pytest.mark.parametrize("stored", ["<f4", ">f4"])
def test_array_digest_is_over_little_endian_bytes_whatever_the_host_stores(stored):
    values = np.arange(1000, dtype=stored)
    assert array_digest(values) == content_digest(np.arange(1000, dtype="<f4").tobytes())
    assert array_digest(values[::2]) == content_digest(np.arange(0, 1000, 2, dtype="<f4").tobytes())


def test_array_digest_tells_minus_zero_from_zero():
    assert array_digest(np.array([0.0], np.float32)) != array_digest(np.array([-0.0], np.float32))


def test_domains_separate_equal_content():
    digests = {tree_digest("one", [1]), tree_digest("two", [1]), content_digest(canonical.encode([1]))}
    assert len(digests) == 3
    leaves = [content_digest(b"a"), content_digest(b"b")]
    assert root_digest("one", leaves) != root_digest("two", leaves)
    assert root_digest("one", leaves) != root_digest("one", leaves[::-1])
    assert root_digest("one", leaves) == root_digest("one", iter(leaves))


def test_state_digest_depends_on_round_tokens_and_every_chunk_in_its_place():
    chunks = [content_digest(bytes([n])) for n in range(4)]
    digests = {
        state_digest(1, 100, chunks), state_digest(2, 100, chunks), state_digest(1, 101, chunks),
        state_digest(1, 100, chunks[:3]), state_digest(1, 100, chunks[::-1]), state_digest(100, 1, chunks),
    }
    assert len(digests) == 6


def test_golden_state_digest():
    chunks = [array_digest(np.arange(5, dtype=np.float32)), array_digest(np.zeros(5, np.float32))]
    assert state_digest(3, 4096, chunks).hex() == "24682815390b904a239bc8efd59ffbe5eb9ef30106c9eb0d4a4b2b60de978b7a"
    assert tree_digest("manifest", ["a", 1]).hex() == "390fc176642443d500e6149ad36dfbd90e46e3573ecc98a744c1adc1a5869323"
