"""Peer records: canonical, signed by the peer they speak of, bounded, and dated."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol import canonical
from atoll.protocol.errors import AtollError, MalformedError, SignatureError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.records import MAX_LIFETIME_S, RECORD_LIMIT, PeerRecord, open_record, record_key

NOW_S = 1_800_000_000.0
RUN = bytes(range(32))
SIGNER, STRANGER = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
RECORD = PeerRecord(SIGNER.peer_id, RUN, ("/ip4/127.0.0.1/tcp/4001",), True, 7, NOW_S + 60)
NAME = peer_name(SIGNER.peer_id)


def opened(data, **changes):
    return open_record(data, **{"subkey": NAME, "now_s": NOW_S, "run_id": RUN, **changes})


def test_a_sealed_record_opens_to_the_same_record():
    assert opened(RECORD.seal(SIGNER)) == RECORD
    assert RECORD.key == record_key(RUN) == "atoll/1/peers/" + RUN.hex()
    assert RECORD.subkey == NAME


def test_the_bytes_of_a_record_are_fixed():
    """A known answer: peers of other versions must read these bytes."""
    data = RECORD.seal(SIGNER)
    assert data == RECORD.seal(SIGNER)
    payload, signature = canonical.decode(data, limit=RECORD_LIMIT)
    assert canonical.decode(payload, limit=RECORD_LIMIT) == (
        1, SIGNER.peer_id, RUN, ("/ip4/127.0.0.1/tcp/4001",), True, 7, NOW_S + 60)
    assert len(signature) == 64


def test_only_the_peer_itself_can_seal_its_record():
    with pytest.raises(SignatureError, match="cannot sign"):
        RECORD.seal(STRANGER)
    payload = canonical.decode(RECORD.seal(SIGNER), limit=RECORD_LIMIT)[0]
    forged = canonical.encode([payload, STRANGER.sign("record", payload)])
    with pytest.raises(SignatureError):
        opened(forged)


def test_a_signature_of_another_domain_does_not_count():
    payload = canonical.decode(RECORD.seal(SIGNER), limit=RECORD_LIMIT)[0]
    with pytest.raises(SignatureError):
        opened(canonical.encode([payload, SIGNER.sign("manifest", payload)]))


def test_a_record_under_another_name_or_of_another_run_is_refused():
    data = RECORD.seal(SIGNER)
    with pytest.raises(SignatureError, match="in the name of"):
        opened(data, subkey=peer_name(STRANGER.peer_id))
    with pytest.raises(MalformedError, match="not of"):
        opened(data, run_id=bytes(32))
    assert opened(data, run_id=None) == RECORD


def test_expiry_is_judged_by_the_time_that_the_caller_names():
    data = RECORD.seal(SIGNER)
    assert opened(data, now_s=NOW_S + 59.9) == RECORD
    with pytest.raises(MalformedError, match="expired"):
        opened(data, now_s=NOW_S + 60)
    assert opened(data, now_s=NOW_S + 100, grace_s=60) == RECORD
    with pytest.raises(MalformedError, match="live longer"):
        opened(data, now_s=NOW_S + 59 - MAX_LIFETIME_S)


@pytest.mark.parametrize("changes", [
    {"peer_id": b"short"}, {"run_id": b"short"}, {"addresses": ("/x",) * 17}, {"addresses": ("x" * 257,)},
    {"addresses": ("",)}, {"addresses": (b"bytes",)}, {"addresses": ("new\nline",)}, {"addresses": ("\ud800",)},
    {"trains": 1}, {"sequence": -1}, {"sequence": True}, {"sequence": 1 << 62}, {"expires_s": float("nan")},
    {"expires_s": float("inf")}, {"expires_s": 5},
])
def test_a_record_out_of_bounds_cannot_be_made(changes):
    with pytest.raises(MalformedError):
        dataclasses.replace(RECORD, **changes)


def test_the_largest_record_is_bounded_as_a_whole():
    with pytest.raises(MalformedError, match="name fewer addresses"):
        dataclasses.replace(RECORD, addresses=("x" * 256,) * 16).seal(SIGNER)
    assert opened(dataclasses.replace(RECORD, addresses=("x" * 240,) * 16).seal(SIGNER)).subkey == NAME


@pytest.mark.parametrize("tree", [
    None, 1, b"", [], [1], [b"a", b"b"], [b"a", b"b", b"c"], [canonical.encode([1, 2]), bytes(64)],
    [canonical.encode([2, SIGNER.peer_id, RUN, [], True, 1, NOW_S + 1]), bytes(64)],
    [canonical.encode([True, SIGNER.peer_id, RUN, [], True, 1, NOW_S + 1]), bytes(64)],
    [canonical.encode([1, SIGNER.peer_id, RUN, 5, True, 1, NOW_S + 1]), bytes(64)],
    [canonical.encode([1, SIGNER.peer_id, RUN, [], True, 1, NOW_S + 1]), bytes(63)],
])
def test_bytes_that_are_no_record_are_refused(tree):
    with pytest.raises(MalformedError):
        opened(canonical.encode(tree))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises(AtollError):
        opened(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_record_with_any_byte_changed_is_refused(position, change):
    data = bytearray(RECORD.seal(SIGNER))
    data[position % len(data)] ^= change
    with pytest.raises(AtollError):
        opened(bytes(data))
