"""One encoding per value, and a reader that takes nothing else."""

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol import canonical
from atoll.protocol.errors import MalformedError

LIMIT = 1 << 16
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.binary(max_size=300)
    | st.text(max_size=80)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=20).map(tuple) | st.dictionaries(st.text(max_size=10), inner, max_size=18),
    max_leaves=40,
)


def same(left, right):
    """Equality that tells 1 from True and 1.0, and -0.0 from 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return left == right


@given(tree=trees)
def test_what_is_encoded_comes_back_with_arrays_as_tuples(tree):
    assert same(canonical.decode(canonical.encode(tree), limit=LIMIT), tree)


@given(tree=st.dictionaries(st.text(max_size=10), st.integers(0, 9), min_size=2, max_size=8))
def test_the_order_in_which_a_map_was_filled_does_not_show(tree):
    assert canonical.encode(dict(reversed(tree.items()))) == canonical.encode(tree)


@given(tree=trees, extra=st.binary(min_size=1, max_size=4))
def test_trailing_bytes_are_refused(tree, extra):
    with pytest.raises(MalformedError):
        canonical.decode(canonical.encode(tree) + extra, limit=LIMIT)


@given(tree=trees, data=st.data())
def test_cut_bytes_are_refused(tree, data):
    encoded = canonical.encode(tree)
    with pytest.raises(MalformedError):
        canonical.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))], limit=LIMIT)


@given(data=st.binary(max_size=80))
def test_arbitrary_bytes_are_canonical_or_refused(data):
    try:
        tree = canonical.decode(data, limit=LIMIT)
    except MalformedError:
        return
    assert canonical.encode(tree) == data


@pytest.mark.parametrize(
    "data",
    [
        b"\xcc\x05", b"\xcd\x00\xff", b"\xce\x00\x00\xff\xff", b"\xcf" + bytes(7) + b"\x01", b"\xd0\x05",
        b"\xd1\xff\xff",
        b"\xd9\x01a", b"\xda\x00\x01a", b"\xc5\x00\x01a", b"\xc6\x00\x00\x00\x01a", b"\xdc\x00\x01\x01",
        b"\xdd\x00\x00\x00\x01\x01", b"\xde\x00\x01\xa1a\x01", b"\xca\x3f\x80\x00\x00",
    ],
    ids=lambda data: data.hex(),
)
def test_a_longer_form_than_needed_is_refused(data):
    msgpack.unpackb(data)  # valid msgpack all the same
    with pytest.raises(MalformedError, match="not in canonical form"):
        canonical.decode(data, limit=LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",  # never used
        b"\xd4\x05a", b"\xc7\x00\x05", b"\xc7\x02\x05ab", msgpack.packb(msgpack.Timestamp(5)),  # extension types
        b"\x82\xa1b\x01\xa1a\x01",  # keys that descend
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\x01\x01", b"\x81\xc4\x01a\x01", b"\x81\x90\x01",  # keys that are no strings
        b"\xa1\xff",  # not UTF-8
        b"\xa3\xed\xa0\x80",  # a lone surrogate
        b"",
    ],
    ids=lambda data: data.hex() or "empty",
)
def test_what_has_no_place_in_canonical_bytes_is_refused(data):
    with pytest.raises(MalformedError):
        canonical.decode(data, limit=LIMIT)


@pytest.mark.parametrize(
    "header", [kind + b"\xff\xff\xff\xff" for kind in (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")],
)
def test_a_length_field_alone_allocates_nothing(header):
    with pytest.raises(MalformedError):
        canonical.decode(header, limit=LIMIT)


def test_bytes_above_the_limit_are_refused_unread():
    with pytest.raises(MalformedError, match="101 bytes where at most 100"):
        canonical.decode(b"\xc1" * 101, limit=100)
    assert canonical.decode(canonical.encode(bytes(98)), limit=100) == bytes(98)


@pytest.mark.parametrize("depth", [500, 900, 5_000, 60_000])
def test_deep_nesting_is_refused_or_read_but_never_breaks_the_reader(depth):
    data = b"\x91" * depth + b"\x90"
    try:
        tree = canonical.decode(data, limit=LIMIT)
    except MalformedError:
        return
    assert canonical.encode(tree) == data


@pytest.mark.parametrize("value", [{1: 2}, {b"a": 1}, {1, 2}, object(), bytearray(b"a"), 1j])
def test_values_without_a_canonical_form_are_a_type_error(value):
    with pytest.raises(TypeError, match="canonical"):
        canonical.encode([value])


def test_golden_bytes():
    tree = {"b": [1, -1, 2**64 - 1], "a": [None, True, b"\x00", 1.5, "ü"]}
    assert canonical.encode(tree).hex() == "82a16195c0c3c40100cb3ff8000000000000a2c3bca1629301ffcfffffffffffffffff"
