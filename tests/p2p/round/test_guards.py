"""What keeps a round under way from being broken off, and a voter from believing a memory that it may have lost."""

import dataclasses

from atoll.p2p.round.effects import Send
from atoll.protocol.certificate import Contribution
from atoll.protocol.fork import Fork
from atoll.protocol.messages import Propose, Voted
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
