"""The transition table: every phase says what every message does, and a real round does what it says.

A group in virtual time is driven into a phase; there one message is given to one peer's round, and the effects and the
change of its memory must be those of the table's entry.
"""

import dataclasses

import pytest

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.core import Phase
from atoll.p2p.round.effects import Adopt, Commit, Enter, Freeze, Save, Send, Step
from atoll.p2p.round.table import TABLE, Do
from atoll.protocol.certificate import Certificate, PartResult, Value, Vote, bitmap
from atoll.protocol.digest import ZERO_DIGEST
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
)

NINE = {Ready, Start, Blob, Get, Prepare, Promise, Propose, Voted, Cert}
PHASES = list(Phase)


def test_every_phase_says_what_every_message_does():
    assert set(TABLE) == set(Phase)
    assert all(set(row) == NINE for row in TABLE.values())
    assert {action for row in TABLE.values() for action in row.values()} == set(Do)


def test_the_table_is_the_one_of_the_design():
    for phase in (Phase.TRAIN, Phase.EXCHANGE, Phase.VOTED):
        assert TABLE[phase][Start] is Do.BEGIN
        assert TABLE[phase][Prepare] is Do.PROMISE
        assert TABLE[phase][Propose] is Do.PEND
    assert [TABLE[Phase.LEFT][kind] for kind in (Start, Prepare, Propose)] == [Do.IGNORE, Do.LAST, Do.IGNORE]
    assert TABLE[Phase.APPLY][Start] is Do.IGNORE
    assert TABLE[Phase.APPLY][Prepare] is Do.PROMISE
    assert all(TABLE[Phase.SYNC][kind] is Do.IGNORE for kind in (Start, Prepare, Promise, Propose))
    for phase in Phase:
        assert TABLE[phase][Blob] is Do.STORE, "bytes are never thrown away for a phase"
        assert TABLE[phase][Cert] is Do.CHOOSE


# Driving a round into each phase.


def follower(group):
    """A peer that does not lead the first ballot."""
    leader = group.peers[group[0].round.tip.leader(0)]
    return next(peer for peer in group.live() if peer is not leader)


def quick(swarm):
    """Three peers after their first round, with rounds of four seconds and little patience."""
    group = swarm(3, numel=2048, grace_s=3.0, ballot_timeout_s=2.0, fork_after_s=4.0)
    for peer in group.live():
        peer.step_s = 0.2
    group.reach(1)
    group.run(1.0)
    return group


def keep_from(group, peer, *kinds):
    """Messages of these kinds do not reach `peer` any more."""
    transmit = group.transmit
    group.transmit = lambda sender, to, message: None if (
        to == peer.id and isinstance(message, kinds)
    ) else transmit(sender, to, message)


def until(group, peer, phase, seconds=60.0):
    assert group.run(seconds, lambda: peer.round.phase is phase), group.story(group.live())


def in_train(swarm):
    group = quick(swarm)
    return group, follower(group)


def in_exchange(swarm):
    group = quick(swarm)
    peer = follower(group)
    until(group, peer, Phase.EXCHANGE)
    return group, peer


def in_voted(swarm):
    """Its vote is out, and those of the others never come."""
    group = quick(swarm)
    peer = follower(group)
    keep_from(group, peer, Voted, Cert)
    until(group, peer, Phase.VOTED)
    return group, peer


def in_left(swarm):
    group = quick(swarm)
    peer = follower(group)
    group.cut([peer])
    until(group, peer, Phase.LEFT, 200)
    return group, peer


def in_apply(swarm):
    """Its certificate is known, and the arithmetic of one part is not done."""
    group = quick(swarm)
    peer = follower(group)
    perform = peer.perform
    peer.perform = lambda effect: None if isinstance(effect, Step) and effect.part == 0 else perform(effect)
    until(group, peer, Phase.APPLY)
    return group, peer


def in_sync(swarm):
    """On the way to another lineage, whose bytes are being put together."""
    group = quick(swarm)
    peer = group[2]
    group.cut([group[0], group[1]], [peer])
    group.reach(3, peers=[peer])
    peer.adopt = lambda target: None
    group.heal()
    until(group, peer, Phase.SYNC)
    return group, peer


def in_finished(swarm):
    group = quick(swarm)
    peer = follower(group)
    peer.round.rounds = peer.round.tip.round
    return group, peer


WAYS = {
    Phase.TRAIN: in_train, Phase.EXCHANGE: in_exchange, Phase.VOTED: in_voted, Phase.LEFT: in_left,
    Phase.APPLY: in_apply, Phase.SYNC: in_sync, Phase.FINISHED: in_finished,
}


@pytest.fixture(params=PHASES, ids=str)
def stage(request, swarm):
    """(phase, group, peer, leader of the next ballot of another, that ballot)."""
    phase = request.param
    group, peer = WAYS[phase](swarm)
    assert peer.round.phase is phase
    group.on_effect = lambda acting, effect: None
    peer.round.drain()
    ballot = max(peer.round.decree.ballot, peer.round.decree.acceptor.promised) + 1
    if peer.round.tip.voters == (peer.id,):  # a survivor of its own: nobody else leads anything
        return phase, group, peer, next(other for other in group.peers if other != peer.id), ballot
    while peer.round.tip.leader(ballot) == peer.id:
        ballot += 1
    return phase, group, peer, peer.round.tip.leader(ballot), ballot


def given(group, peer, sender, message):
    return peer.round.receive(group.now, sender, message)


def sent(effects, kind):
    return [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def foreign_value(peer):
    """A value that follows from the peer's tip, of somebody else's making: the one it knows, else an empty one."""
    core, tip = peer.round, peer.round.tip
    if tip.bound is not None or core.decree.acceptor.accepted is not None:
        return (tip.bound or core.decree.acceptor.accepted[1])
    decided = tip.standings.decided_by
    attendance = bitmap(set(range(len(decided))), len(decided))
    after = electorates.successor(tip.standings, core.chain.policy, (), attendance, ())
    parts = tuple(PartResult(b"", ZERO_DIGEST) for _ in range(core.shape.parts))
    return Value(tip.id, tip.round + 1, tip.tokens, (), parts, attendance, (), after.electorate, bytes(32))


def test_start_does_what_the_table_says(stage):
    phase, group, peer, leader, ballot = stage
    members = tuple(sorted(group.peers))
    start = Start(peer.round.tip.id, ballot, 0, members, ((0, peer.round.shape.parts),), 1000)
    before = peer.round.decree.exchange.start
    frozen = peer.round.decree.frozen or peer.id in peer.round.decree.exchange.heads
    effects = given(group, peer, leader, start)
    begun = peer.round.decree.exchange.start is start
    assert begun == (TABLE[phase][Start] is Do.BEGIN)
    if begun:
        assert frozen or any(isinstance(effect, Freeze) for effect in effects)
    else:
        assert peer.round.decree.exchange.start is before
        assert not any(isinstance(effect, Freeze) for effect in effects)


def test_prepare_does_what_the_table_says(stage):
    phase, group, peer, leader, ballot = stage
    before = peer.round.decree.acceptor
    promises = sent(given(group, peer, leader, Prepare(peer.round.tip.id, ballot)), Promise)
    action = TABLE[phase][Prepare]
    assert bool(promises) == (action is Do.PROMISE)
    if promises:
        assert (promises[0].ballot, promises[0].accepted) == (ballot, before.accepted)
        assert peer.round.decree.acceptor == dataclasses.replace(before, promised=ballot)
    else:
        assert peer.round.decree.acceptor == before


def test_a_promise_is_durable_before_it_leaves_and_a_lower_ballot_gets_none(stage):
    phase, group, peer, leader, ballot = stage
    effects = given(group, peer, leader, Prepare(peer.round.tip.id, ballot))
    if TABLE[phase][Prepare] is Do.PROMISE:
        kinds = [type(e) if isinstance(e, Save) else type(e.message) for e in effects if isinstance(e, (Save, Send))]
        assert kinds.index(Save) < kinds.index(Promise)
        low = ballot - 1
        if peer.round.tip.leader(low) != peer.id:
            again = given(group, peer, peer.round.tip.leader(low), Prepare(peer.round.tip.id, low))
            assert not sent(again, Promise)
    stranger = group.identities[0].peer_id if leader != group.identities[0].peer_id else group.identities[1].peer_id
    assert not sent(given(group, peer, stranger, Prepare(peer.round.tip.id, ballot)), Promise), "no leader of it"


def test_the_last_prepare_does_what_the_table_says(stage):
    """Where voting goes on it is heeded only if no quorum is seen; one that has left signs again."""
    phase, group, peer, leader, _ = stage
    if TABLE[phase][Prepare] is Do.PROMISE and phase is not Phase.APPLY:
        peer.round.decree.stalled_at = group.now - 100  # for long enough: a quorum that gets nothing done is none
    nonce = bytes(range(16))
    promises = sent(given(group, peer, leader, Prepare(peer.round.tip.id, 0, nonce)), Promise)
    heeds = TABLE[phase][Prepare] in (Do.PROMISE, Do.LAST) and phase is not Phase.APPLY  # APPLY: a child is certified
    if not heeds:
        assert not promises
        return
    [promise] = promises
    assert promise.last is not None
    promise.last.check()
    assert (promise.last.nonce, promise.last.peer) == (nonce, peer.id)
    assert peer.round.decree.acceptor.left
    again = sent(given(group, peer, leader, Prepare(peer.round.tip.id, 0, bytes(16))), Promise)
    assert again[0].last.nonce == bytes(16), "for another initiator, too"
    ordinary = sent(given(group, peer, leader, Prepare(peer.round.tip.id, 1000)), Promise)
    assert not ordinary


def test_propose_does_what_the_table_says(stage):
    phase, group, peer, leader, ballot = stage
    propose = Propose(ballot, foreign_value(peer))
    before = peer.round.decree.acceptor
    effects = given(group, peer, leader, propose)
    decree = peer.round.decree
    if TABLE[phase][Propose] is Do.IGNORE:
        assert decree.pending is not propose
        assert decree.acceptor == before
        assert not [m for m in sent(effects, Voted) if m.vote.ballot == ballot]
    else:
        voted = [m for m in sent(effects, Voted) if m.vote.ballot == ballot]
        assert decree.ballot == ballot
        assert decree.pending is propose or voted


def test_a_proposal_that_does_not_follow_from_the_tip_is_never_pending(stage):
    _, group, peer, leader, ballot = stage
    lie = Propose(ballot, dataclasses.replace(foreign_value(peer), tokens=1))
    given(group, peer, leader, lie)
    assert peer.round.decree.pending is not lie
    assert peer.round.decree.ballot < ballot


def test_votes_are_counted_in_every_phase(stage):
    _, group, peer, _, _ = stage
    voter = next((p for p in group.peers.values() if p is not peer and p.id in peer.round.tip.voters), peer)
    value = dataclasses.replace(foreign_value(peer), state=bytes([1]) * 32)
    entry = peer.round.tip.journal_of(voter.id)
    vote = Vote.cast(voter.identity, entry, 77, value)
    given(group, peer, voter.id, Voted(vote))
    assert peer.round.decree.tally.votes[77, value.id][voter.id] == vote
    other = Vote.cast(voter.identity, bytes(15) + b"x", 78, value)
    given(group, peer, voter.id, Voted(other))
    assert not peer.round.decree.tally.votes.get((78, value.id)), "under another journal it counts for nothing"


def test_ready_is_noted_in_every_phase(stage):
    _, group, peer, leader, _ = stage
    ready = Ready(bytes([3]) * 32, bytes([3]) * 32, 99, "TRAIN", 7, True, 0, bytes(16), None, 0)
    group.now += 0.1
    given(group, peer, leader, ready)
    assert peer.round.pace.peers[leader].ready is ready
    assert peer.round.pace.present(leader, group.now)


def test_a_get_of_a_link_is_served_in_every_phase(stage):
    _, group, peer, leader, _ = stage
    link = peer.history[0].link
    assert link in [message.link for message in sent(given(group, peer, leader, Get(BlobKind.LINK, link.id)), Cert)]


def test_bytes_are_stored_in_every_phase(stage):
    """A result of the round under way is taken note of, and stepped."""
    phase, group, peer, leader, _ = stage
    core = peer.round
    blob = Blob(BlobKind.RESULT, bytes([9]) * 32, core.shape.result_bytes[1], core.tip.base, part=1)
    core.stored(group.now, leader, blob)
    if phase is Phase.FINISHED:
        return
    assert core.decree.exchange.results[1, leader].digest == blob.digest
    assert (1, blob.digest) in core.decree.stepping | core.decree.stepped.keys()


def test_a_certificate_is_taken_into_the_tree_in_every_phase(stage):
    phase, group, peer, leader, _ = stage
    core, tip = peer.round, peer.round.tip
    value = dataclasses.replace(foreign_value(peer), state=bytes([2]) * 32) if phase is not Phase.APPLY else None
    if value is None or core.decree.acceptor.accepted is not None or tip.bound is not None:
        value = foreign_value(peer)
    votes = tuple(Vote.cast(group.peers[p].identity, tip.journal_of(p), 50, value) for p in tip.voters)
    effects = given(group, peer, leader, Cert(Certificate(value, 50, votes)))
    assert value.id in core.chain
    if phase in (Phase.SYNC, Phase.FINISHED):
        assert not any(isinstance(effect, (Commit, Adopt, Enter)) for effect in effects)


def test_an_older_parent_is_answered_by_the_certificate_behind_it(stage):
    _, group, peer, leader, ballot = stage
    first = peer.history[0].link
    group.now += 1.0
    answers = sent(given(group, peer, leader, Prepare(group.manifest.run_id, ballot)), Cert)
    assert [answer.link.id for answer in answers] == [first.id]


def test_a_parent_that_is_not_reached_yet_waits(stage):
    _, group, peer, leader, ballot = stage
    effects = given(group, peer, leader, Prepare(bytes([4]) * 32, ballot))
    assert not sent(effects, Promise)
    assert not sent(effects, Cert)
    assert bytes([4]) * 32 in peer.round._early
