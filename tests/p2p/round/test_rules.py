"""Single rules of the round, each on its own: quorum, leaders, Paxos, certificates, parts and owners."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain, check_value
from atoll.p2p.round.exchange import Exchange, Head, Shape, assign, run_lengths, sending_order
from atoll.p2p.round.pace import Pace
from atoll.p2p.round.sync import Wants
from atoll.p2p.round.synod import Acceptor, Proposer, Tally, evidence
from atoll.protocol.certificate import (
    FIRST_JOURNAL,
    Certificate,
    Contribution,
    PartResult,
    Value,
    Vote,
    Voter,
    bitmap,
    round_tokens,
)
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.fork import LastPromise, Rank
from atoll.protocol.identity import Identity
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import ExchangeSettings
from atoll.protocol.messages import Blob, BlobKind, Start
from atoll.protocol.standing import Record, Standing

KEYS = sorted((Identity(bytes([i + 1]) * 32) for i in range(5)), key=lambda key: key.peer_id)
PEERS = [key.peer_id for key in KEYS]
ELECTORATE = electorates.genesis(tuple(PEERS))
RUN, STATE, JOURNAL = bytes([7]) * 32, bytes([8]) * 32, bytes([6]) * 16
LAYOUT = Layout(2500, 1024)
SIZES = (1024, 1024, 452)


RECORD = Record.sign(KEYS[0], RUN, Standing.LEAVE, bytes(16))


def value(tokens=(1000, 500), included=({0, 1}, {0, 1}, {0}), **changes):
    contributions = tuple(Contribution(PEERS[i], bytes([i]) * 32, n) for i, n in enumerate(tokens))
    parts = tuple(PartResult(bitmap(who, len(tokens)), bytes([20 + i]) * 32) for i, who in enumerate(included))
    whole = round_tokens(contributions, parts, SIZES)
    made = Value(RUN, 1, whole, contributions, parts, b"", (), ELECTORATE, STATE)
    return dataclasses.replace(made, **changes)


def votes(of, ballot=0, who=(0, 1, 2)):
    return tuple(Vote.cast(KEYS[i], FIRST_JOURNAL, ballot, of) for i in who)


def chain():
    return Chain(RUN, ELECTORATE, STATE, LAYOUT, owner=PEERS[0], settings=ExchangeSettings(part_elements=1024))


def checked(what):
    made = chain()
    check_value(what, made.tip, SIZES, made.policy)


def test_a_quorum_is_more_than_half_or_half_with_the_most_senior():
    four = ELECTORATE[:4]
    assert electorates.is_quorum(ELECTORATE, PEERS[:3])
    assert not electorates.is_quorum(ELECTORATE, PEERS[:2])
    assert electorates.is_quorum(four, [PEERS[0], PEERS[3]])
    assert not electorates.is_quorum(four, [PEERS[1], PEERS[3]])
    assert not electorates.is_quorum(four, [PEERS[1], PEERS[4]]), "a stranger counts for nothing"


@given(st.integers(1, 31))
def test_any_two_quorums_meet(size):
    electorate = electorates.genesis(tuple(bytes([i]) for i in range(size)))
    for split in range(size + 1):
        one, other = [bytes([i]) for i in range(split)], [bytes([i]) for i in range(split, size)]
        assert not (electorates.is_quorum(electorate, one) and electorates.is_quorum(electorate, other))


def test_every_voter_leads_in_turn_and_parents_differ_in_the_order():
    tip = chain().genesis
    led = [tip.leader(ballot) for ballot in range(5)]
    assert sorted(led) == PEERS
    assert tip.leader(7) == led[2]
    assert tip.next_turn(led[2], 3) == 7
    assert tip.next_turn(b"stranger", 0) is None
    assert len({electorates.leaders(bytes([i]) * 32, ELECTORATE) for i in range(20)}) > 1


def test_bytes_for_the_round_under_way_are_asked_for_before_others():
    wants, late, urgent = Wants(5.0), bytes([3]) * 32, bytes([4]) * 32
    wants.need(BlobKind.RESULT, late, PEERS[:1], RUN, 0)
    wants.need(BlobKind.RESULT, urgent, PEERS[:1], STATE, 0)
    assert [send.message.digest for send in wants.requests(0.0, lambda _: True, STATE)] == [urgent, late]


def test_a_voter_keeps_its_promise_and_votes_once_in_a_ballot():
    one, other = value(), value(tokens=(1000, 400))
    promised = Acceptor().promise(3)
    assert promised is not None
    assert promised.accept(2, one) is None
    voted = promised.accept(3, one)
    assert voted is not None
    assert voted.accept(3, other) is None
    assert voted.accept(3, one) == voted
    assert voted.accept(4, other) is not None
    assert voted.promise(2) is None


def test_a_voter_that_has_left_never_votes_under_this_parent_again_and_may_leave_again():
    left = Acceptor(2, (2, value())).leave()
    assert left.accept(3, value()) is None
    assert left.promise(3) is None
    assert left.leave() == left
    assert left.accepted == (2, value()), "which is evidence"


def test_evidence_is_the_highest_ballot_accepted_under_a_journal_that_counts():
    one, other = value().id, value(tokens=(1000, 400)).id

    def said(i, accepted, journal=FIRST_JOURNAL):
        return LastPromise.sign(KEYS[i], RUN, bytes(16), Rank.VOTERS, journal, accepted)

    assert evidence([said(0, None), said(1, None)], ELECTORATE) is None
    assert evidence([said(0, (1, one)), said(1, (4, other)), said(2, None)], ELECTORATE) == (4, other)
    assert evidence([said(0, (1, one)), said(1, (4, other), JOURNAL)], ELECTORATE) == (1, one)


def test_two_votes_in_one_ballot_are_the_proof_of_equivocation():
    tally, one, other = Tally(), value(), value(tokens=(1000, 400))
    first = votes(one, 2, (0,))[0]
    tally.add(first, ELECTORATE)
    assert tally.contradiction(votes(other, 2, (0,))[0]) == first
    assert tally.contradiction(votes(one, 2, (0,))[0]) is None
    assert tally.contradiction(votes(other, 3, (0,))[0]) is None
    assert tally.contradiction(votes(other, 2, (1,))[0]) is None


def test_a_leader_is_bound_to_the_value_of_the_highest_ballot():
    low, high = value(), value(tokens=(1000, 400))
    proposer = Proposer(6, {PEERS[0]: (1, low), PEERS[1]: (4, high)})
    assert not proposer.may_propose(ELECTORATE), "two promises of five are no quorum"
    proposer.promises[PEERS[2]] = None
    assert proposer.may_propose(ELECTORATE)
    assert proposer.bound() == high


def test_votes_of_different_ballots_never_make_a_certificate():
    what, tally = value(), Tally()
    for vote in [*votes(what, 0, (0, 1)), *votes(what, 1, (2, 3))]:
        assert tally.add(vote, ELECTORATE)
    assert tally.certificate({what.id: what}, ELECTORATE) is None
    assert not tally.add(votes(what, 1, (2,))[0], ELECTORATE), "nor is one counted twice"
    tally.add(votes(what, 1, (4,))[0], ELECTORATE)
    certificate = tally.certificate({what.id: what}, ELECTORATE)
    assert certificate is not None
    chain().add(certificate)


def test_certificate_id_is_the_same_under_any_subset_of_votes_and_any_ballot():
    what = value()
    assert Certificate(what, 0, votes(what)).id == Certificate(what, 3, votes(what, 3, (1, 3, 4))).id
    decoded = Certificate.decode(Certificate(what, 0, votes(what)).encode())
    assert decoded == Certificate(what, 0, votes(what))


@pytest.mark.parametrize(
    "changes",
    [
        {"parent": STATE},
        {"round": 2},
        {"tokens": 5},
        {"electorate": ELECTORATE[:3]},
        {"electorate": (*ELECTORATE[:4], Voter(PEERS[4], bytes([1]) * 16))},
        {"parts": value().parts[:2]},
    ],
)
def test_a_value_that_does_not_follow_from_its_parent_is_refused(changes):
    with pytest.raises(MalformedError):
        checked(dataclasses.replace(value(), **changes))


@pytest.mark.parametrize(
    "bad",
    [
        lambda v: votes(v, who=(0, 1)),
        lambda v: (*votes(v, who=(0, 1)), votes(v, who=(0,))[0]),
        lambda v: (*votes(v, who=(0, 1)), votes(v, ballot=1, who=(2,))[0]),
        lambda v: tuple(dataclasses.replace(vote, signature=bytes(64)) for vote in votes(v)),
        lambda v: tuple(dataclasses.replace(vote, journal=bytes([1]) * 16) for vote in votes(v)),
    ],
    ids=["minority", "one twice", "two ballots", "forged", "another journal"],
)
def test_a_certificate_without_a_quorum_of_valid_votes_is_refused(bad):
    what = value()
    whole = Certificate(what, 0, bad(what))
    with pytest.raises(SignatureError):
        chain().add(Certificate.decode(whole.encode()))


def test_round_tokens_count_what_is_listed_and_round_down():
    assert value().tokens == 1000 + 500 * 2048 // 2500
    assert value(included=({1}, {1}, {1})).tokens == 500


@pytest.mark.parametrize(
    "tree",
    [
        lambda t: [*t[:3], t[3][::-1], *t[4:]],
        lambda t: [*t[:3], [t[3][0], t[3][0]], *t[4:]],
        lambda t: [*t[:3], [[t[3][0][0], t[3][0][1], 0, t[3][0][3]], t[3][1]], *t[4:]],
        lambda t: [*t[:4], [[b"\xff", t[4][0][1]], *t[4][1:]], *t[5:]],
        lambda t: [*t[:4], [[b"", t[4][0][1]], *t[4][1:]], *t[5:]],
        lambda t: [*t[:5], bytes(5), *t[6:]],
        lambda t: [*t[:6], [[*RECORD.tree()], [*RECORD.tree()]], *t[7:]],
        lambda t: [*t[:6], [[*RECORD.tree()[:1], 0, *RECORD.tree()[2:]]], *t[7:]],
        lambda t: [*t[:7], [], t[8]],
        lambda t: [*t[:7], [t[7][0], t[7][0]], t[8]],
        lambda t: [*t[:7], [[t[7][0][0], b"short"]], t[8]],
        lambda t: t[:8],
    ],
    ids=["unordered", "twice", "zero tokens", "spare bits", "short bitmap", "attendance of too many", "two records",
         "a record of no kind", "no electorate", "a voter twice", "a short journal", "a field less"],
)
def test_a_malformed_value_does_not_parse(tree):
    def tuples(item):
        return tuple(tuples(i) for i in item) if isinstance(item, list) else item

    with pytest.raises(MalformedError):
        Value.from_tree(tuples(tree(value().tree())))


@given(st.integers(1, 300), st.dictionaries(st.sampled_from(PEERS), st.integers(0, 10**9), min_size=1))
def test_every_part_has_an_owner_in_proportion_to_its_rate(parts, rates):
    owners = assign(parts, rates)
    assert len(owners) == parts
    assert set(owners) <= set(rates)
    known = [rate for rate in rates.values() if rate]
    usual = max(1, sum(known) // len(known)) if known else 1
    shares = {peer: rate or usual for peer, rate in rates.items()}
    for peer, share in shares.items():
        assert abs(owners.count(peer) - parts * share / sum(shares.values())) < 1
    start = Start(RUN, 0, 0, tuple(sorted(rates)), run_lengths(owners, tuple(sorted(rates))), 0)
    assert start.owner_of(parts) == owners
    with pytest.raises(MalformedError):
        start.owner_of(parts + 1)


def test_sending_order_is_a_permutation_of_its_own_for_each_peer():
    orders = {tuple(sending_order(RUN, peer, 50)) for peer in PEERS}
    assert len(orders) == len(PEERS)
    assert all(sorted(order) == list(range(50)) for order in orders)


def exchange():
    return Exchange(RUN, PEERS[0], Shape(LAYOUT, ExchangeSettings(part_elements=1024)))


def part(of, index, **changes):
    size = of.shape.part_bytes[index]
    return dataclasses.replace(Blob(BlobKind.PART, bytes(32), size, RUN, PEERS[1], bytes([1]) * 32, index), **changes)


def test_bytes_of_the_wrong_size_or_beyond_one_vector_are_not_received():
    table = exchange()
    assert table.accepts(PEERS[1], part(table, 0))
    assert not table.accepts(PEERS[1], part(table, 0, size=5))
    assert not table.accepts(PEERS[1], part(table, 2, part=3))
    assert not table.accepts(PEERS[1], part(table, 0, peer=None))
    taken = sum(table.accepts(PEERS[1], part(table, 0)) for _ in range(1000))
    assert taken < 20


def test_only_leaves_of_the_announced_root_are_averaged():
    table = exchange()
    table.fix(Head(bytes([9]) * 32, 100, JOURNAL), (bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32))
    assert table.announce(PEERS[1], Head(bytes([1]) * 32, 50, JOURNAL))
    assert not table.announce(PEERS[1], Head(bytes([2]) * 32, 50, JOURNAL)), "a second does not replace the first"
    assert table.announce(PEERS[1], Head(bytes([2]) * 32, 50, bytes(16))), "one of another journal is no offence"
    assert table.heads[PEERS[1]].root == bytes([1]) * 32
    table.begin(Start(RUN, 0, 0, tuple(PEERS[:2]), ((0, 3),), 1000), 0.0)
    leaves = Blob(BlobKind.LEAVES, bytes([1]) * 32, table.shape.leaves_bytes, RUN, PEERS[1])
    with pytest.raises(MalformedError):
        table.hold(PEERS[1], leaves, (bytes(32),))
    table.hold(PEERS[1], leaves, (bytes([4]) * 32, bytes([5]) * 32, bytes([6]) * 32))
    table.hold(PEERS[1], part(table, 0, digest=bytes([4]) * 32), None)
    table.hold(PEERS[1], part(table, 1, digest=bytes([66]) * 32), None)  # no leaf of the root
    ready = {item.part: [s.peer for s in item.sources] for item in table.reductions(0.5, lambda _: True)}
    assert ready == {0: PEERS[:2]}
    late = {item.part: [s.peer for s in item.sources] for item in table.reductions(1.5, lambda _: True)}
    assert late == {1: PEERS[:1], 2: PEERS[:1]}


def test_a_part_that_was_reduced_with_nobody_in_it_is_reduced_again_once_there_is_somebody():
    """A round closed before anybody had taken a step: its contributions come late, and must not come in vain."""
    table, alone = exchange(), PEERS[:1]
    table.begin(Start(RUN, 0, 0, tuple(alone), ((0, 3),), 1000), 0.0)
    assert [item.sources for item in table.reductions(1.5, lambda _: True)] == [(), (), ()]
    for index in range(3):
        empty = Blob(BlobKind.RESULT, bytes([30 + index]) * 32, table.shape.result_bytes[index], RUN, part=index)
        table.hold(PEERS[0], empty, None)
    table.begin(Start(RUN, 1, 0, tuple(alone), ((0, 3),), 1000), 2.0)
    assert table.reductions(2.1, lambda _: True) == [], "with nobody there is nothing to do again"
    table.fix(Head(bytes([9]) * 32, 100, JOURNAL), (bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32))
    assert [[s.peer for s in item.sources] for item in table.reductions(2.2, lambda _: True)] == [alone] * 3


def test_a_peer_that_is_silent_is_gone_and_one_never_heard_is_awaited_for_a_while():
    pace = Pace(ExchangeSettings(gone_after_s=2.0), 0.0)
    assert [pace.awaited(PEERS[1], at) for at in (1.0, 7.0)] == [True, False]
    assert pace.heard(PEERS[1], 1.0)
    assert not pace.heard(PEERS[1], 2.0)
    assert pace.present(PEERS[1], 3.9)
    assert not pace.present(PEERS[1], 4.0)
    pace.heard(PEERS[1], 5.0)
    pace.disconnected(PEERS[1], 5.0)
    assert not pace.present(PEERS[1], 6.6), "a broken stream shortens the wait"


def test_after_a_long_gap_in_events_patience_begins_anew():
    pace = Pace(ExchangeSettings(gone_after_s=2.0, heartbeat_s=0.5), 0.0)
    for at in (1.0, 2.0, 3.0):
        pace.notice(at)
    assert pace.woke_at == 0.0
    pace.notice(3600.0)
    assert pace.woke_at == 3600.0


def test_the_last_ballots_patience_is_at_least_a_round_and_all_its_ballots():
    usual = ExchangeSettings(grace_s=8.0, ballot_timeout_s=4.0, round_s=30.0)
    assert usual.fork_timeout_s(3) == 8 + 30 + 1.5 * 4 * 4
    assert usual.fork_timeout_s(5) > usual.fork_timeout_s(3)
    assert ExchangeSettings(fork_after_s=7.0).fork_timeout_s(5) == 7.0


def test_a_want_goes_from_holder_to_holder_and_never_to_two_at_once():
    wants, there = Wants(5.0), lambda _: True
    wants.need(BlobKind.RESULT, RUN, PEERS[:3], STATE, 4)
    assert [send.to for send in wants.requests(0.0, there, STATE)] == [PEERS[0]]
    assert wants.requests(1.0, there, STATE) == []
    wants.missing(RUN, PEERS[0])
    assert [send.to for send in wants.requests(2.0, there, STATE)] == [PEERS[1]]
    wants.progress(RUN, PEERS[1], 6.0)
    assert wants.requests(8.0, there, STATE) == [], "bytes that keep coming are waited for"
    assert [send.to for send in wants.requests(12.0, there, STATE)] == [PEERS[2]]
    want = wants.arrived(RUN)
    assert want is not None
    assert (want.base, want.part) == (STATE, 4)
    assert wants.arrived(RUN) is None
