"""Records of what a peer wants from the electorate: bound to their base, and to nobody else's name."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol import canonical
from atoll.protocol.errors import AtollError, MalformedError, SignatureError
from atoll.protocol.identity import Identity
from atoll.protocol.read import fields
from atoll.protocol.standing import Record, Standing, sign_ticket

ME, OTHER, OWNER = (Identity(bytes([i]) * 32) for i in (1, 2, 3))
BASE, RUN, JOURNAL = bytes([5]) * 32, bytes([6]) * 32, bytes(range(16))
WISHES = [Standing.JOIN, Standing.LEAVE, Standing.CANNOT_VOTE]


def decoded(tree):
    return Record.from_fields(fields(canonical.decode(canonical.encode(tree), limit=1 << 12), 5))


@pytest.mark.parametrize("kind", WISHES)
def test_a_record_is_read_as_it_was_signed_and_holds_under_its_base_only(kind):
    record = Record.sign(ME, BASE, kind, JOURNAL, b"t" * 64)
    again = decoded(record.tree())
    assert again == record
    again.check(BASE)
    with pytest.raises(SignatureError):
        again.check(RUN)


@pytest.mark.parametrize(
    "change", [{"peer": OTHER.peer_id}, {"kind": Standing.LEAVE}, {"journal": bytes(16)}, {"signature": bytes(64)},
               {"signature": b""}],
)
def test_a_record_with_anything_changed_does_not_hold(change):
    record = Record.sign(ME, BASE, Standing.JOIN, JOURNAL)
    with pytest.raises(SignatureError):
        dataclasses.replace(record, **change).check(BASE)


def test_a_ticket_is_the_owners_for_one_peer_in_one_run():
    def with_ticket(ticket):
        return Record.sign(ME, BASE, Standing.JOIN, JOURNAL, ticket)

    assert with_ticket(sign_ticket(OWNER, RUN, ME.peer_id)).has_ticket(RUN, OWNER.peer_id)
    assert not with_ticket(b"").has_ticket(RUN, OWNER.peer_id)
    for bad in (sign_ticket(OWNER, RUN, OTHER.peer_id), sign_ticket(OWNER, BASE, ME.peer_id),
                sign_ticket(ME, RUN, ME.peer_id), bytes(64)):
        with pytest.raises(SignatureError):
            with_ticket(bad).has_ticket(RUN, OWNER.peer_id)


@pytest.mark.parametrize(
    ("at", "item"),
    [(0, b"x"), (0, 5), (1, 0), (1, 4), (1, True), (1, b""), (2, bytes(15)), (2, bytes(17)), (3, bytes(65)), (3, None),
     (4, bytes(65)), (4, 1)],
)
def test_a_record_with_a_field_out_of_bounds_does_not_parse(at, item):
    tree = Record.sign(ME, BASE, Standing.JOIN, JOURNAL).tree()
    tree[at] = item
    with pytest.raises(MalformedError):
        decoded(tree)
    with pytest.raises(MalformedError):
        decoded(tree[:4])


@given(st.recursive(st.none() | st.booleans() | st.integers(-9, 99) | st.binary(max_size=70), st.lists, max_leaves=8))
def test_any_other_tree_is_refused_in_words(tree):
    with pytest.raises(AtollError):
        decoded(tree)


def test_the_wish_to_change_nothing_is_no_record():
    with pytest.raises(MalformedError):
        decoded(Record.sign(ME, BASE, Standing.VOTER, JOURNAL).tree())
