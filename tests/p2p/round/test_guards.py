"""What keeps a round under way from being broken off, and a voter from believing a memory that it may have lost."""

import dataclasses

from atoll.p2p.round.effects import Send
from atoll.p2p.round.synod import Proposer
from atoll.protocol.certificate import Contribution
from atoll.protocol.fork import Fork
from atoll.protocol.messages import Blob, BlobKind, Prepare, Promise, Propose, Voted
from atoll.protocol.standing import Record, Standing


def forks(peer):
    return [link for link in peer.round.chain.lineage(peer.round.tip.id) if isinstance(link, Fork)]


def impatient_loner(swarm):
    """Five voters with rounds of 80 s; one, cut off, is so impatient that it FORKs and certifies before the others."""
    group = swarm(5)
    group.reach(1)
    loner, others = group[4], [group[i] for i in range(4)]
    for peer in others:
        peer.step_s = 4.0
    group.reach(2)
    group.cut([loner], others)
    loner.round.settings = dataclasses.replace(loner.round.settings, fork_after_s=3.0)
    at = others[0].round.tip.round
    assert group.run(75, lambda: forks(loner) and not loner.round.tip.is_fork), "the loner is not fast enough"
    assert all(peer.round.tip.round == at for peer in others), "the others are too fast"
    return group, loner, others


def test_a_loners_fork_takes_nobody_out_of_a_round_that_a_quorum_is_in(swarm):
    group, loner, others = impatient_loner(swarm)
    group.heal()
    group.run(10)
    assert all(loner.round.tip.id in peer.round.chain for peer in others), "they know its certificate"
    group.reach(others[0].round.tip.round + 1, peers=others)
    group.unite()
    assert not forks(others[0])
    assert not forks(loner)


def test_a_loners_fork_is_followed_by_those_who_get_nowhere(swarm):
    group, loner, others = impatient_loner(swarm)
    for peer in others[:3]:
        group.kill(peer)
    group.heal()
    group.unite(peers=[loner, others[3]])
    assert len(forks(others[3])) == 1


def test_a_genesis_voter_with_an_empty_journal_asks_before_it_votes(swarm):
    """Its disk may have been lost after it voted: somebody who is past genesis would know."""
    group = swarm(3)
    group.reach(1, peers=[group[0], group[1]])
    group.cut([group[2]], [group[0], group[1]])
    group.kill(group[2])
    group[2].lose_disk()
    group[2].boot()
    sent = []
    group.on_effect = lambda peer, effect: (
        sent.append(effect.message) if peer is group[2] and isinstance(effect, Send) else None)
    group.run(5)  # nobody can tell it yet
    assert group[2].round.tip.round == 0
    assert not group[2].round.votes
    group.heal()
    group.unite()
    assert not [m for m in sent if isinstance(m, Voted) and m.vote.parent == group.manifest.run_id]


def test_a_value_accepted_before_is_voted_for_even_by_who_would_refuse_it_anew(swarm):
    """A voter refuses to list another root than it heard of; once a value was accepted, a ballot has to end with it."""
    group = swarm(3)
    proposals = []
    group.on_effect = lambda peer, effect: (
        proposals.append(effect.message) if isinstance(effect, Send) and isinstance(effect.message, Propose) else None)
    assert group.run(100, lambda: bool(proposals))
    fresh = proposals[0]
    listed = fresh.value.contributions[0]
    doubters = [peer for peer in group.live() if peer.round.decree.vote is None and peer.id != listed.peer]
    for peer in [p for p in group.live() if p.round.decree.vote is None]:
        heads = peer.round.decree.exchange.heads
        other = next(c for c in fresh.value.contributions if c.peer != peer.id)
        heads[other.peer] = dataclasses.replace(heads[other.peer], root=bytes(32))
    group.run(0.5)
    voter = doubters[0]
    assert "proposal_refused" in voter.notes
    assert voter.round.decree.vote is None
    voter.do(voter.round.receive(group.now, voter.round.tip.leader(1), Propose(1, fresh.value, carried=True)))
    assert voter.round.decree.vote.certificate == fresh.value.id


def test_a_record_of_another_base_is_not_believed(swarm):
    group = swarm(2)
    group.reach(1)
    peer, other = group[0], group[1]
    stale = Record.sign(other.identity, group.manifest.run_id, Standing.LEAVE, other.journal.id)
    ready = dataclasses.replace(other.round.ready(), record=stale, tip=peer.round.tip.id, base=peer.round.tip.base)
    peer.do(peer.round.receive(group.now, other.id, ready))
    assert other.id not in peer.round.records
    assert "bad_record" in peer.notes


def test_a_contribution_names_its_journal(swarm):
    group = swarm(2)
    group.reach(1)
    [first] = [entry.certificate for entry in group[0].history][:1]
    assert {c.journal for c in first.value.contributions} == {group[0].journal.id, group[1].journal.id}
    assert all(isinstance(c, Contribution) for c in first.value.contributions)


def behind_a_fork(swarm):
    """Two of four, at the moment when the first of them is behind the FORK that both have signed."""
    group = swarm(4)
    group.reach(1)
    group.kill(group[0])
    group.kill(group[1])
    assert group.run(600, lambda: any(peer.round.tip.is_fork for peer in group.live()))
    return group, *sorted([group[2], group[3]], key=lambda peer: not peer.round.tip.is_fork)


def test_what_was_promised_under_a_base_means_nothing_behind_its_fork(swarm):
    """Else a leader would take an old promise for a new one, and could propose beside what is certified there."""
    group, one, other = behind_a_fork(swarm)
    group.cut([one], [other])
    decree, tip = one.round.decree, one.round.tip
    ballot = tip.next_turn(one.id, max(decree.ballot, 0) + 1)
    decree.proposer = Proposer(ballot)
    stale = Promise(tip.base, ballot, other.journal.id, None)
    one.do(one.round.receive(group.now, other.id, stale))
    assert one.round.decree.proposer is None or other.id not in one.round.decree.proposer.promises
    before = one.round.decree.acceptor
    one.do(one.round.receive(group.now, tip.leader(ballot + 8), Prepare(tip.base, ballot + 8)))
    assert one.round.decree.acceptor == before


def test_bytes_of_another_kind_are_not_taken_for_what_is_wanted(swarm):
    """The headers' kind decides whether bytes are hashed on arrival."""
    group = swarm(2)
    group.reach(1)
    peer, digest = group[0], bytes([9]) * 32
    peer.round.wants.need(BlobKind.RESULT, digest, [group[1].id], peer.round.tip.base, 0)
    size = peer.round.shape.result_bytes[0]
    assert peer.round.accepts(group[1].id, Blob(BlobKind.RESULT, digest, size, wanted=True))
    assert not peer.round.accepts(group[1].id, Blob(BlobKind.MANIFEST, digest, size, wanted=True))
    assert not peer.round.accepts(group[1].id, Blob(BlobKind.CHUNKS, digest, size, wanted=True))


def test_results_damaged_on_the_disk_are_fetched_again(swarm):
    """A power cut leaves empty files under right names; no CPU is to be blamed for that."""
    group = swarm(3)
    group.reach(1)
    peer = group[2]
    group.kill(peer)
    group.reach(group[0].round.tip.round + 1, peers=[group[0], group[1]])
    missed = next(entry.certificate for entry in group[0].history if entry.link.id not in peer.round.chain)
    torn = missed.value.parts[0].digest
    peer.blobs.put(BlobKind.RESULT, missed.value.parent, torn, b"")
    peer.boot()
    group.unite()
    group.check_exactness()
    assert "nondeterministic_cpu" not in peer.notes


def test_what_is_overdue_is_due_now(swarm):
    group = swarm(1)
    group.run(1)
    peer = group[0].round
    late = max(peer.pace.next_heartbeat, peer._nudge_at) + 0.001
    assert peer.deadline(late) <= late


def test_who_has_finished_on_a_losing_lineage_still_follows_the_winning_one(swarm):
    group = swarm(5, rounds=8)
    group.reach(2)
    pair, rest = [group[3], group[4]], [group[0], group[1], group[2]]
    for peer in rest:
        peer.step_s = 3.0
    group.reach(3)
    group.cut(pair, rest)
    assert group.run(4000, lambda: all(peer.round.finished for peer in pair)), group.story(pair)
    assert not any(peer.round.finished for peer in rest)
    group.heal()
    group.unite(seconds=8000)
    assert not forks(pair[0])
