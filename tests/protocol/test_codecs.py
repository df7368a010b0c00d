"""Every codec: exact sizes, same bytes always, its written error bound, and nothing hostile gets through."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol.codecs.port import CHUNK_ELEMENTS, MAX_MAGNITUDE
from atoll.protocol.codecs.registry import CODECS, codec
from atoll.protocol.digest import content_digest
from atoll.protocol.errors import AtollError, MalformedError, NonFiniteError
from atoll.protocol.manifest import CODECS as MANIFEST_CODECS
from atoll.protocol.outer_step import PartReducer

FAMILIES = ["gaussian", "student-t3", "sparse", "constant", "zero", "denormal", "tiny", "huge", "all scales"]
NAMES = sorted(CODECS)
SIZES = [1, 2, 255, 256, 257, 511, 512, CHUNK_ELEMENTS - 1, CHUNK_ELEMENTS, CHUNK_ELEMENTS + 300]

every_codec = pytest.mark.parametrize("name", NAMES)
vectors = given(family=st.sampled_from(FAMILIES), numel=st.integers(1, 1200), seed=st.integers(0, 2**32 - 1))


def test_registry_has_exactly_the_codecs_that_a_manifest_may_name():
    assert set(CODECS) == set(MANIFEST_CODECS)
    assert all(codec(name).name == name for name in NAMES)
    with pytest.raises(MalformedError, match="'int9' is not a codec; known are fp32, fp16, int8, top8"):
        codec("int9")


@every_codec
@pytest.mark.parametrize("numel", SIZES)
def test_encoded_size_is_exact_and_decode_gives_a_vector_that_the_caller_owns(name, numel, vector):
    values = vector("gaussian", numel, numel)
    values.flags.writeable = False
    data = codec(name).encode(values)
    decoded = codec(name).decode(data, numel)
    assert type(data) is bytes
    assert len(data) == codec(name).encoded_size(numel)
    assert (decoded.shape, decoded.dtype) == ((numel,), np.float32)
    assert decoded.flags.writeable
    assert decoded.flags.owndata or decoded.base is None
    assert np.array_equal(codec(name).decode(memoryview(data), numel), decoded)


@every_codec
@vectors
def test_encode_is_a_function_of_the_values_alone(name, vector, family, numel, seed):
    values = vector(family, numel, seed)
    before = values.tobytes()
    data = codec(name).encode(values)
    shifted = np.empty(numel + 1, np.float32)[1:]  # another alignment, other vector lanes
    shifted[:] = values
    assert codec(name).encode(shifted) == data
    assert values.tobytes() == before


@vectors
def test_fp32_is_exact_to_the_bit(vector, family, numel, seed):
    values = vector(family, numel, seed)
    assert codec("fp32").decode(codec("fp32").encode(values), numel).tobytes() == values.tobytes()


@vectors
def test_fp16_keeps_its_error_bound_and_clips(vector, family, numel, seed):
    values = vector(family, numel, seed)
    decoded = codec("fp16").decode(codec("fp16").encode(values), numel).astype(np.float64)
    exact = values.astype(np.float64)
    inside = np.abs(exact) <= 65504
    error = np.abs(decoded - exact)
    assert np.all(error[inside] <= np.maximum(np.abs(exact[inside]) * 2.0**-11, 2.0**-25))
    assert np.array_equal(decoded[~inside], np.sign(exact[~inside]) * 65504)


def test_fp16_rounds_like_the_standard_conversion_at_every_half_and_every_midpoint():
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    midpoints = (halves[1:] + halves[:-1]) * np.float32(0.5)
    edges = np.concatenate([halves, midpoints, [np.float32(65519.996), np.float32(65520), np.float32(1e12)]])
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))])
    edges = np.concatenate([edges, -edges]).astype(np.float32)
    expected = np.clip(edges, np.float32(-65504), np.float32(65504)).astype(np.float16)
    assert codec("fp16").encode(edges) == expected.tobytes()


@vectors
def test_int8_keeps_its_error_bound_block_by_block(vector, family, numel, seed):
    values = vector(family, numel, seed)
    decoded = codec("int8").decode(codec("int8").encode(values), numel)
    for start in range(0, numel, 256):
        exact, block = values[start : start + 256].astype(np.float64), decoded[start : start + 256].astype(np.float64)
        largest = np.abs(exact).max()
        bound = largest / 254 * (1 + 2.0**-15) if largest >= 2.0**-100 else largest
        assert np.abs(block - exact).max() <= bound


@pytest.mark.parametrize(("family", "limit"), [("gaussian", 0.008), ("student-t3", 0.03)])
def test_int8_loses_little_of_gaussian_and_heavy_tailed_vectors(family, limit, vector):
    values = vector(family, 300_000, 3)
    decoded = codec("int8").decode(codec("int8").encode(values), values.size)
    assert np.linalg.norm(decoded - values) < limit * np.linalg.norm(values)


@vectors
def test_int8_is_what_its_docstring_says(vector, family, numel, seed):
    """A second implementation, one scalar at a time, gives the same bytes and the same values."""
    values = vector(family, numel, seed)
    scales, codes, decoded = [], [], []
    for start in range(0, numel, 256):
        block = values[start : start + 256]
        largest = max(abs(x) for x in block)
        scale = np.float32(0) if largest < np.float32(2.0**-100) else np.float32(largest) / np.float32(127)
        scales.append(scale)
        for x in block:
            code = round(float(x / scale)) if scale else 0  # Python rounds ties to even
            codes.append(code)
            decoded.append(np.float32(code) * scale)
    data = struct.pack(f"<{len(scales)}f{numel}b", *scales, *codes)
    assert codec("int8").encode(values) == data
    assert np.array_equal(codec("int8").decode(data, numel), np.array(decoded, np.float32))


def test_golden_bytes():
    bits = [0x3F800000, 0xC0000000, 0x80000000, 0x007FFFFF, 0x00000001, 0x3EAAAAAB, 0x53000000]
    values = np.array(bits, np.uint32).view(np.float32)  # 1, -2, -0, two subnormals, 1/3, 2^39
    assert codec("fp32").encode(values).hex() == "0000803f000000c000000080ffff7f0001000000abaaaa3e00000053"
    assert codec("fp16").encode(values).hex() == "003c00c00080000000005535ff7b"
    assert codec("int8").encode(values).hex() == "0402814f" "0000000000007f"
    assert codec("int8").encode(values[:6]).hex() == "0402813c" "408100000015"  # 63.5 goes to 64


def test_golden_digests():
    values = (np.arange(-300, 300) * np.float32(0.5)).astype(np.float32)
    digests = {name: content_digest(codec(name).encode(values)).hex()[:16] for name in NAMES}
    assert digests == {
        "fp16": "f504fafcf27f4f3b",
        "fp32": "877f706eb0f252b9",
        "int8": "b3ea442c3681fdd9",
        "top8": "4604eff7d3968192",
    }


@every_codec
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 2.0**40 * 1.0000002, -3.4e38])
@pytest.mark.parametrize("place", [0, 255, 256, 700])
def test_encode_refuses_what_is_not_finite_or_absurd_wherever_it_stands(name, value, place, vector):
    values = vector("gaussian", 701, 1)
    values[place] = value
    with pytest.raises(NonFiniteError, match=r"NaN|infinity|magnitude of"):
        codec(name).encode(values)


@every_codec
@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4),
        np.zeros(4, ">f4"),
        np.zeros((2, 2), np.float32),
        np.zeros(8, np.float32)[::2],
        np.zeros(0, np.float32),
    ],
    ids=["float64", "big-endian", "matrix", "strided", "empty"],
)
def test_encode_refuses_a_caller_s_mistake(name, values):
    with pytest.raises(ValueError, match="C-contiguous"):
        codec(name).encode(values)


@every_codec
@pytest.mark.parametrize("numel", [0, -1])
def test_no_size_below_one_element(name, numel):
    with pytest.raises(ValueError, match="no encoding"):
        codec(name).encoded_size(numel)


@every_codec
def test_decode_checks_the_size_before_it_allocates(name, vector):
    data = codec(name).encode(vector("gaussian", 300, 1))
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(MalformedError, match="for 300 elements"):
            codec(name).decode(wrong, 300)
    for numel in (250, 330, 1 << 60):  # a block less, a block more; the last one would need an exabyte
        with pytest.raises(MalformedError):
            codec(name).decode(data, numel)


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("fp32", struct.pack("<2f", 1, np.nan), NonFiniteError),
        ("fp32", struct.pack("<2f", -np.inf, 1), NonFiniteError),
        ("fp32", struct.pack("<2f", 1, 1.2e12), NonFiniteError),
        ("fp16", struct.pack("<2H", 0, 0x7C00), NonFiniteError),
        ("fp16", struct.pack("<2H", 0xFC00, 0), NonFiniteError),
        ("fp16", struct.pack("<2H", 0x7C01, 0), NonFiniteError),
        ("int8", struct.pack("<f2b", np.nan, 1, 1), NonFiniteError),
        ("int8", struct.pack("<f2b", np.inf, 1, 1), NonFiniteError),
        ("int8", struct.pack("<f2b", 1e10, 1, 1), NonFiniteError),
        ("int8", struct.pack("<f2b", 3e38, 1, 1), NonFiniteError),
        ("int8", struct.pack("<f2b", -1, 1, 1), MalformedError),
        ("int8", struct.pack("<f2b", -0.0, 0, 0), MalformedError),
        ("int8", struct.pack("<f2b", 1e-40, 1, 1), MalformedError),
        ("int8", struct.pack("<f2b", 6e-33, 1, 1), MalformedError),
        ("int8", struct.pack("<f2b", 1, -128, 1), MalformedError),
        ("int8", struct.pack("<f2b", 0, 0, 1), MalformedError),
    ],
)
def test_decode_refuses_what_no_encoder_writes(name, data, error):
    with pytest.raises(error):
        codec(name).decode(data, 2)


@every_codec
@given(data=st.data(), numel=st.integers(1, 600))
def test_decode_of_damaged_bytes_is_refused_or_stays_in_bounds(name, data, numel, vector):
    encoded = bytearray(codec(name).encode(vector("student-t3", numel, numel)))
    for place in data.draw(st.lists(st.integers(0, len(encoded) - 1), min_size=1, max_size=8)):
        encoded[place] = data.draw(st.integers(0, 255))
    try:
        decoded = codec(name).decode(bytes(encoded), numel)
    except AtollError:
        return
    assert np.all(np.abs(decoded) <= MAX_MAGNITUDE)  # false for NaN too
    codec(name).encode(decoded)


@every_codec
@given(weights=st.lists(st.integers(1, 2**20), min_size=1, max_size=12), sign=st.sampled_from([1, -1]))
def test_whatever_decodes_can_be_averaged_and_encoded_again(name, weights, sign):
    largest = np.full(300, sign * MAX_MAGNITUDE, np.float32)
    largest[::7] = np.nextafter(largest[0], np.float32(0))
    reducer = PartReducer(300)
    for weight in weights:
        reducer.add(weight, codec(name).decode(codec(name).encode(largest), 300))
    codec(name).decode(codec(name).encode(reducer.average()), 300)


@every_codec
def test_scratch_memory_does_not_grow_with_the_vector(name):
    values = np.ones(1 << 21, np.float32)
    tracemalloc.start()
    try:
        data = codec(name).encode(values)
        encode_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        codec(name).decode(data, values.size)
        decode_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert encode_peak < 2 * len(data) + (1 << 20)
    assert decode_peak < len(data) + values.nbytes + (1 << 20)
