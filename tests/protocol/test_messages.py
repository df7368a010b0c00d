"""The nine messages: what is sealed is unsealed, and nothing else."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol.certificate import (
    FIRST_JOURNAL,
    Certificate,
    Contribution,
    PartResult,
    Value,
    Vote,
    Voter,
    bitmap,
)
from atoll.protocol.errors import AtollError, MalformedError, SignatureError
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity
from atoll.protocol.messages import (
    Blob,
    BlobKind,
    Cert,
    Get,
    Prepare,
    Promise,
    Propose,
    Ready,
    Start,
    Voted,
    seal,
    unseal,
)
from atoll.protocol.standing import Record, Standing

ME, OTHER = Identity(b"\1" * 32), Identity(b"\2" * 32)
RUN, D, JOURNAL, NONCE = bytes(32), bytes([5]) * 32, bytes([6]) * 16, bytes(range(16))
VALUE = Value(
    D,
    1,
    10,
    (Contribution(ME.peer_id, D, 10),),
    (PartResult(bitmap({0}, 1), D),),
    b"\1",
    (Record.sign(OTHER, D, Standing.LEAVE, bytes(16)),),
    (Voter(ME.peer_id, FIRST_JOURNAL),),
    D,
)
VOTE = Vote.cast(ME, FIRST_JOURNAL, 0, VALUE)
MEMBERS = tuple(sorted([ME.peer_id, OTHER.peer_id]))
LAST = LastPromise.sign(ME, D, NONCE, Rank.VOTERS, JOURNAL, (1, VALUE.id))
SILENT = LastPromise.sign(ME, D, NONCE, Rank.HOLDERS, JOURNAL, None)
NINE = [
    Ready(D, D, 3, "TRAIN", 4, True, 1000, FIRST_JOURNAL, D, 10),
    Ready(D, bytes(32), 3, "TRAIN", 4, False, 1000, JOURNAL, None, 0, Record.sign(ME, D, Standing.JOIN, JOURNAL)),
    Start(D, 0, 17, MEMBERS, ((0, 3), (1, 2)), 60_000),
    Blob(BlobKind.RESULT, D, 100, D, part=4, roots=(D,), wanted=True),
    Blob(BlobKind.PART, D, None, None),
    Get(BlobKind.CHUNK, D),
    Get(BlobKind.LINK, D),
    Prepare(D, 2),
    Prepare(D, 0, NONCE, Rank.CONTRIBUTORS),
    Promise(D, 2, FIRST_JOURNAL, (1, VALUE)),
    Promise(D, 2, FIRST_JOURNAL, None),
    Promise(D, 0, JOURNAL, (1, VALUE), LAST),
    Promise(D, 0, JOURNAL, None, SILENT),
    Propose(0, VALUE),
    Voted(VOTE),
    Cert(Certificate(VALUE, 0, (VOTE,))),
    Cert(Fork(D, NONCE, Rank.VOTERS, (LAST,), VALUE)),
    Cert(Fork(D, NONCE, Rank.HOLDERS, (SILENT,), None)),
]


@pytest.mark.parametrize("message", NINE, ids=lambda m: type(m).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    assert unseal(seal(message, RUN, ME), RUN, ME.peer_id) == message


@pytest.mark.parametrize("message", [m for m in NINE if not isinstance(m, (Blob, Get))], ids=lambda m: type(m).__name__)
def test_a_message_of_another_run_or_another_sender_is_not_believed(message):
    data = seal(message, RUN, ME)
    with pytest.raises(SignatureError):
        unseal(data, D, ME.peer_id)
    with pytest.raises(SignatureError):
        unseal(data, RUN, OTHER.peer_id)


@pytest.mark.parametrize("message", NINE, ids=lambda m: type(m).__name__)
def test_a_message_cut_or_changed_anywhere_is_refused_in_words(message):
    data = seal(message, RUN, ME)
    for at in range(0, len(data), 7):
        with pytest.raises(AtollError):
            unseal(data[:at], RUN, ME.peer_id)
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if not isinstance(message, (Blob, Get)):
            with pytest.raises(AtollError):
                unseal(changed, RUN, ME.peer_id)


@given(st.binary(max_size=400))
def test_noise_is_refused_in_words(data):
    with pytest.raises(AtollError):
        unseal(data, RUN, ME.peer_id)


def test_a_vote_that_another_peer_passes_on_holds_by_its_own_signature():
    """Who is about to be evicted wrongly is defended by others that have its vote; nobody can make one for it."""
    passed_on = unseal(seal(Voted(VOTE), RUN, OTHER), RUN, OTHER.peer_id)
    assert passed_on == Voted(VOTE)
    passed_on.vote.check()
    forged = dataclasses.replace(VOTE, peer=OTHER.peer_id)
    with pytest.raises(SignatureError):
        unseal(seal(Voted(forged), RUN, ME), RUN, ME.peer_id).vote.check()


def test_a_promise_names_no_value_of_its_own_ballot_or_a_later_one():
    with pytest.raises(MalformedError):
        unseal(seal(Promise(D, 2, FIRST_JOURNAL, (2, VALUE)), RUN, ME), RUN, ME.peer_id)


@pytest.mark.parametrize("members", [(), MEMBERS[::-1], (MEMBERS[0], MEMBERS[0])], ids=["none", "unordered", "twice"])
def test_start_lists_members_in_order_and_once(members):
    with pytest.raises(MalformedError):
        unseal(seal(Start(D, 0, 0, members, (), 0), RUN, ME), RUN, ME.peer_id)


@pytest.mark.parametrize(
    "message",
    [
        Promise(D, 0, JOURNAL, None, LastPromise.sign(OTHER, D, NONCE, Rank.VOTERS, JOURNAL, None)),
        Ready(D, D, 3, "TRAIN", 4, True, 0, JOURNAL, None, 0, Record.sign(OTHER, D, Standing.LEAVE, JOURNAL)),
    ],
    ids=["last promise", "record"],
)
def test_a_promise_or_a_wish_in_another_peers_name_is_refused(message):
    with pytest.raises(MalformedError):
        unseal(seal(message, RUN, ME), RUN, ME.peer_id)


@pytest.mark.parametrize(
    "message",
    [
        Promise(bytes(32), 0, JOURNAL, None, SILENT),
        Promise(D, 0, bytes(16), None, SILENT),
        Promise(D, 0, JOURNAL, None, LAST),
        Promise(D, 0, JOURNAL, (2, VALUE), LAST),
        Promise(D, 0, JOURNAL, (1, VALUE), SILENT),
    ],
    ids=["parent", "journal", "nothing accepted", "another ballot", "something accepted"],
)
def test_a_promise_and_the_last_promise_in_it_say_the_same(message):
    with pytest.raises(MalformedError):
        unseal(seal(message, RUN, ME), RUN, ME.peer_id)


def test_a_last_promise_may_tell_of_any_ballot():
    """An ordinary promise tells of lower ballots only; the last one ends them all."""
    said = LastPromise.sign(ME, D, NONCE, Rank.VOTERS, JOURNAL, (9, VALUE.id))
    message = Promise(D, 0, JOURNAL, (9, VALUE), said)
    assert unseal(seal(message, RUN, ME), RUN, ME.peer_id) == message


def test_goodbye_is_the_wish_to_leave():
    leaving = Record.sign(ME, D, Standing.LEAVE, JOURNAL)
    assert Ready(D, D, 3, "TRAIN", 4, True, 0, JOURNAL, None, 0, leaving).leaving
    assert not NINE[0].leaving
    assert not NINE[1].leaving
