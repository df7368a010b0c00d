"""top8: what its docstring says, to the bit; the contract that all codecs share is in `test_codecs`."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol.codecs.registry import CODECS, codec
from atoll.protocol.errors import MalformedError, ManifestError, NonFiniteError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft

FAMILIES = ["gaussian", "student-t3", "sparse", "constant", "zero", "denormal", "tiny", "huge", "all scales"]
TOP8 = codec("top8")


@given(family=st.sampled_from(FAMILIES), numel=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_a_second_implementation_gives_the_same_bytes_and_the_same_values(vector, family, numel, seed):
    values = vector(family, numel, seed)
    places, halves, decoded = [], [], np.zeros(numel, np.float32)
    for start in range(0, numel, 64):
        block = values[start : start + 64]
        order = sorted(range(block.size), key=lambda i: (-abs(float(block[i])), i))
        for index in sorted(order[:8]):
            places.append(index)
            halves.append(np.clip(block[index], np.float32(-65504), np.float32(65504)).astype(np.float16))
            decoded[start + index] = halves[-1]
    data = bytes(places) + np.array(halves, "<f2").tobytes()
    assert TOP8.encode(values) == data
    assert np.array_equal(TOP8.decode(data, numel), decoded)


def test_of_equal_magnitudes_the_lower_index_is_listed():
    values = np.full(64, -0.5, np.float32)
    values[40:] = 0.5
    assert TOP8.encode(values) == bytes(range(8)) + struct.pack("<8e", *[-0.5] * 8)


def test_three_bits_per_parameter_and_a_short_last_block_costs_what_it_holds():
    sizes = (1, 5, 8, 63, 64, 65, 6400)
    assert [TOP8.encoded_size(n) for n in sizes] == [3, 15, 24, 24, 24, 27, 2400]


@pytest.mark.parametrize(("family", "limit"), [("gaussian", 0.72), ("student-t3", 0.57)])
def test_the_error_is_as_written(family, limit, vector):
    values = vector(family, 300_000, 3)
    error = np.linalg.norm(TOP8.decode(TOP8.encode(values), values.size) - values) / np.linalg.norm(values)
    assert limit - 0.12 < error < limit


@pytest.mark.parametrize(
    ("indices", "first", "error"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 64], 1.0, MalformedError),
        ([0, 1, 2, 3, 4, 5, 6, 255], 1.0, MalformedError),
        ([0, 1, 2, 3, 4, 5, 6, 6], 1.0, MalformedError),
        ([1, 0, 2, 3, 4, 5, 6, 7], 1.0, MalformedError),
        ([0, 1, 2, 3, 4, 5, 6, 63], np.nan, NonFiniteError),
        ([0, 1, 2, 3, 4, 5, 6, 63], -np.inf, NonFiniteError),
    ],
)
@pytest.mark.parametrize("blocks_before", [0, 3, 600])
def test_decode_refuses_what_no_encoder_writes_in_any_block(indices, first, error, blocks_before, vector):
    numel = 64 * (blocks_before + 1)
    data = bytearray(TOP8.encode(vector("gaussian", numel, 1)))
    data[8 * blocks_before : 8 * blocks_before + 8] = bytes(indices)
    place = 8 * (blocks_before + 1) + 16 * blocks_before
    data[place : place + 2] = np.float16(first).tobytes()
    with pytest.raises(error):
        TOP8.decode(bytes(data), numel)


def test_in_a_short_block_indices_end_with_the_vector():
    good = bytes([0, 1, 2]) + struct.pack("<3e", 1, 2, 3)
    assert TOP8.decode(good, 3).tolist() == [1, 2, 3]
    with pytest.raises(MalformedError):
        TOP8.decode(bytes([0, 1, 3]) + good[3:], 3)


def test_only_contributions_may_be_encoded_with_error_feedback():
    owner = {"run": {"name": "t", "owner": peer_name(Identity(b"\1" * 32).peer_id)}}
    assert [name for name in CODECS if CODECS[name].error_feedback] == ["top8"]
    assert Draft.from_tree({**owner, "exchange": {"contribution_codec": "top8"}}).exchange.residual_cap == 1
    with pytest.raises(ManifestError, match=r"gather_codec. is 'top8'"):
        Draft.from_tree({**owner, "exchange": {"gather_codec": "top8"}})
