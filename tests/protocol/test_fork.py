"""FORK and the last promises in it: read as signed, named by what was said and not by who signed how."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol import canonical
from atoll.protocol.certificate import FIRST_JOURNAL, Contribution, PartResult, Value, Voter, bitmap
from atoll.protocol.errors import AtollError, MalformedError, SignatureError
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity
from atoll.protocol.read import fields

KEYS = sorted((Identity(bytes([i]) * 32) for i in (1, 2, 3)), key=lambda key: key.peer_id)
PARENT, NONCE, JOURNAL, D = bytes([5]) * 32, bytes(range(16)), bytes([7]) * 16, bytes([8]) * 32
VALUE = Value(
    PARENT, 3, 10, (Contribution(KEYS[0].peer_id, D, 10),), (PartResult(bitmap({0}, 1), D),), b"\1", (),
    (Voter(KEYS[0].peer_id, FIRST_JOURNAL),), D,
)


def promise(i, said=None, rank=Rank.VOTERS, parent=PARENT, nonce=NONCE, journal=JOURNAL):
    return LastPromise.sign(KEYS[i], parent, nonce, rank, journal, said)


def fork(*promises, value=None, rank=Rank.VOTERS):
    return Fork(PARENT, NONCE, rank, promises, value)


WHOLE = fork(promise(0), promise(1, (4, VALUE.id)), promise(2), value=VALUE)


def decoded(tree):
    return Fork.from_tree(canonical.decode(canonical.encode(tree), limit=1 << 20))


@pytest.mark.parametrize(
    "link", [WHOLE, fork(promise(0)), fork(promise(1, rank=Rank.HOLDERS), rank=Rank.HOLDERS),
             fork(promise(0, rank=Rank.CONTRIBUTORS), promise(2, rank=Rank.CONTRIBUTORS), rank=Rank.CONTRIBUTORS)],
)
def test_a_fork_is_read_as_it_was_made(link):
    again = decoded(link.tree())
    assert again == link
    assert again.id == link.id
    for said in again.promises:
        said.check()


def test_a_fork_s_id_covers_what_was_said_and_no_signature():
    other = dataclasses.replace(WHOLE, promises=tuple(dataclasses.replace(p, signature=bytes(64))
                                                      for p in WHOLE.promises))
    assert other.id == WHOLE.id
    assert dataclasses.replace(WHOLE, value=None).id == WHOLE.id, "the value follows from what was said"


def test_a_fork_s_id_differs_with_everything_that_was_said():
    others = [
        fork(promise(0), promise(1, (4, VALUE.id))),
        fork(promise(0), promise(1, (3, VALUE.id)), promise(2)),
        fork(promise(0), promise(1, (4, D)), promise(2)),
        fork(promise(0), promise(1), promise(2)),
        fork(promise(0, journal=bytes(16)), promise(1, (4, VALUE.id)), promise(2)),
        dataclasses.replace(WHOLE, nonce=bytes(16)),
        dataclasses.replace(WHOLE, parent=D),
        dataclasses.replace(WHOLE, rank=Rank.HOLDERS),
    ]
    assert len({WHOLE.id, *(other.id for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    "change", [{"parent": D}, {"nonce": bytes(16)}, {"rank": Rank.HOLDERS}, {"peer": KEYS[1].peer_id},
               {"journal": bytes(16)}, {"accepted": (0, D)}, {"signature": bytes(64)}],
    ids=lambda change: next(iter(change)),
)
def test_a_promise_with_anything_changed_does_not_hold(change):
    said = promise(0)
    said.check()
    with pytest.raises(SignatureError):
        dataclasses.replace(said, **change).check()


@pytest.mark.parametrize(
    ("at", "item"),
    [(0, bytes(31)), (1, bytes(15)), (1, bytes(17)), (2, 0), (2, 4), (2, True), (3, b""), (4, bytes(15)), (5, ()),
     (5, (0,)), (5, (-1, D)), (5, ((1 << 31) + 1, D)), (5, (0, b"")), (5, (True, D)), (6, bytes(65))],
)
def test_a_promise_with_a_field_out_of_bounds_does_not_parse(at, item):
    tree = promise(0).tree()
    tree[at] = item
    with pytest.raises(MalformedError):
        LastPromise.from_fields(fields(canonical.decode(canonical.encode(tree), limit=1 << 12), 7))


@pytest.mark.parametrize(
    "bad",
    [
        fork(), fork(promise(1), promise(0)), fork(promise(0), promise(0)), fork(promise(0, parent=D)),
        fork(promise(0, nonce=bytes(16))), fork(promise(0, rank=Rank.HOLDERS)),
        fork(promise(0, (0, VALUE.id)), value=dataclasses.replace(VALUE, parent=D)),
    ],
    ids=["nobody", "unordered", "one twice", "another parent", "another ballot", "another rank", "another's value"],
)
def test_a_fork_that_cannot_be_one_does_not_parse(bad):
    with pytest.raises(MalformedError):
        decoded(bad.tree())


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 99) | st.binary(max_size=40), st.lists, max_leaves=12))
def test_any_other_tree_is_refused_in_words(tree):
    with pytest.raises(AtollError):
        decoded(tree)


@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 255))
def test_a_fork_with_any_field_replaced_parses_to_itself_or_not_at_all(field, inner, noise):
    tree = WHOLE.tree()
    if field == 3:
        tree[3][1] = [*tree[3][1]]
        tree[3][1][inner] = bytes([noise]) * 16
    else:
        tree[field] = bytes([noise]) * (noise % 40)
    try:
        read = decoded(tree)
    except AtollError:
        return
    assert canonical.encode(read.tree()) == canonical.encode(tree)
