"""When the quorum is gone, when halves meet again, when peers come and go: directed scenarios in virtual time.

Twenty virtual seconds of training make a round; L follows from the settings: 8 + 1.5 x 4 x (voters + 1) seconds.
"""

import dataclasses

import pytest

from atoll.p2p.round.effects import Commit, Save, Send
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Vote
from atoll.protocol.fork import Fork, Rank
from atoll.protocol.messages import BlobKind, Cert, Get, Prepare, Voted
from atoll.protocol.standing import Standing, sign_ticket


def forks(peer):
    return [link for link in peer.round.chain.lineage(peer.round.tip.id) if isinstance(link, Fork)]


def voters(group, peer):
    """Indices of those who vote at a peer's tip, by seniority."""
    order = list(group.peers)
    return [order.index(voter) for voter in peer.round.tip.voters]


def contributors(group, peer, back=1):
    order = list(group.peers)
    certificates = [entry.certificate for entry in peer.history if entry.certificate is not None]
    return sorted(order.index(c.peer) for c in certificates[-back].value.contributions)


# The quorum is gone.


def test_half_of_the_group_gone_for_good_goes_on_in_one_new_lineage_that_says_so(swarm):
    group = swarm(4)
    group.reach(1)
    group.kill(group[0])  # the senior: two of four without it are no quorum
    group.kill(group[1])
    reached = group[2].round.tip.round
    group.reach(reached + 3, seconds=600)
    group.unite()
    for peer in group.live():
        assert [fork.rank for fork in forks(peer)] == [Rank.VOTERS]
        assert set(forks(peer)[0].signers) == {group[2].id, group[3].id}
    assert voters(group, group[2]) == [2, 3]
    group.check_exactness()


def test_all_gone_but_one_and_the_one_goes_on(swarm):
    group = swarm(5)
    group.reach(1)
    for peer in [group[i] for i in (0, 1, 3, 4)]:
        group.kill(peer)
    reached, began = group[2].round.tip.round, group.now
    group.run(5 * 44 - 25)
    assert group[2].round.tip.round <= reached + 1, "not before L x 5 / 1"
    group.reach(reached + 2, seconds=600)
    assert group.now - began < 5 * 44 + 120
    assert voters(group, group[2]) == [2]


def test_all_voters_gone_and_contributors_go_on_in_a_lineage_of_the_second_rank(swarm):
    group = swarm(4, voters=2, admit_after=0)
    group.reach(2)
    group.kill(group[0])
    group.kill(group[1])
    reached = group[2].round.tip.round
    group.reach(reached + 2, seconds=900)
    group.unite()
    assert {fork.rank for fork in forks(group[2])} == {Rank.CONTRIBUTORS}
    assert sorted(voters(group, group[2])) == [2, 3]


def test_all_voters_and_contributors_gone_and_holders_go_on_in_a_lineage_of_the_third_rank(swarm):
    group = swarm(3, voters=1, start=1, admit_after=0)
    group.reach(2)
    for late in (group[1], group[2]):
        late.trains = False
        group.start(late)
    assert group.run(200, lambda: all(p.round.tip.id == group[0].round.tip.id for p in group.live()))
    group.kill(group[0])
    for late in (group[1], group[2]):
        late.trains = late.round.trains = True
        late.begin_training()
    group.reach(group[1].round.tip.round + 2, seconds=900)
    group.unite()
    assert forks(group[1])[0].rank is Rank.HOLDERS
    assert sorted(voters(group, group[1])) == [1, 2]


def test_holders_of_nothing_but_genesis_do_not_go_on_alone(swarm):
    group = swarm(3, voters=1, start=1)
    group.kill(group[0])
    group.start(group[1])
    group.start(group[2])
    group.run(600)
    assert [(peer.round.tip.round, peer.round.tip.forks) for peer in group.live()] == [(0, 0), (0, 0)]


def test_a_value_accepted_by_a_survivor_is_certified_behind_the_fork(swarm):
    """The leader and one other voted, the certificate reached nobody: survivors must not certify something else."""
    group = swarm(3)
    group.reach(1)
    voted = []

    def cut_at_the_first_vote(peer, effect):
        if not voted and isinstance(effect, Save) and effect.acceptor.accepted and peer.round.tip.round == 1:
            voted.append((peer, effect.acceptor.accepted[1]))
            for other in group.live():
                if other is not peer:
                    group.kill(other, told=False)

    group.on_effect = cut_at_the_first_vote
    assert group.run(200, lambda: bool(voted))
    group.on_effect = lambda peer, effect: None
    survivor, value = voted[0]
    group.reach(3, seconds=600)
    fork, first = survivor.history[1].link, survivor.history[2].certificate
    assert isinstance(fork, Fork)
    assert fork.value == value
    assert first.value.contributions == value.contributions
    assert first.value.parts == value.parts
    assert first.value.state == value.state
    assert first.id != value.id, "another parent, another electorate"
    group.check_exactness()


def test_voters_that_come_back_follow_the_survivors_lineage_without_a_restart_of_those(swarm):
    group = swarm(4)
    group.reach(1)
    group.kill(group[0])
    group.kill(group[1])
    group.reach(group[2].round.tip.round + 3, seconds=600)
    lives = [group[2].generation, group[3].generation]
    group.start(group[0])
    group.start(group[1])
    group.unite()
    group.reach(group[2].round.tip.round + 3)
    group.unite()
    assert contributors(group, group[2]) == [0, 1, 2, 3]
    assert [group[2].generation, group[3].generation] == lives


# Cut apart and joined again.


@pytest.mark.parametrize("senior", ["in the smaller half", "in the larger half"])
def test_two_halves_that_meet_again_follow_the_quorum_and_nobody_restarts(swarm, senior):
    group = swarm(5)
    group.reach(1)
    smaller = [group[0], group[3]] if senior == "in the smaller half" else [group[3], group[4]]
    larger = [peer for peer in group.live() if peer not in smaller]
    group.cut(smaller, larger)
    reached = group[0].round.tip.round
    group.reach(reached + 3, seconds=600, peers=smaller)
    assert all(len(forks(peer)) >= 1 for peer in smaller)
    assert all(not forks(peer) for peer in larger), "a quorum goes on with no FORK"
    kept = larger[0].round.tip.id
    group.heal()
    group.unite()
    for peer in group.live():
        assert peer.generation == 1
        assert not forks(peer), "three rounds of a quorum of five count more than three of two"
        assert peer.round.chain.on_path(kept)
    group.reach(max(p.round.tip.round for p in group.live()) + 2)
    group.unite()
    assert contributors(group, smaller[0]) == [0, 1, 2, 3, 4]
    group.check_exactness()


@pytest.mark.parametrize("senior", [True, False])
def test_exact_halves_that_meet_again_follow_the_one_with_the_senior(swarm, senior):
    group = swarm(4)
    group.reach(1)
    mine, others = [group[0], group[1]], [group[2], group[3]]
    if not senior:  # and where the senior's half is not longer, the rule is the same
        group.freeze(group[0], 30)
    group.cut(mine, others)
    reached = group[0].round.tip.round
    group.reach(reached + 3, seconds=900, peers=others)
    assert [forks(peer) == [] for peer in group.live()] == [True, True, False, False]
    group.heal()
    group.unite()
    assert all(not forks(peer) for peer in group.live())
    assert [peer.generation for peer in group.live()] == [1] * 4


def test_without_a_quorum_on_either_side_the_lineage_of_more_credit_wins(swarm):
    """Of seven one is dead: three and three are no quorum unless the senior is there, and it is the dead one."""
    group = swarm(7)
    group.reach(1)
    group.kill(group[0])
    left, right = [group[1], group[2], group[3], group[4]], [group[5], group[6]]
    group.kill(group[4])
    left.pop()
    group.cut(left, right)
    reached = group[1].round.tip.round
    group.reach(reached + 2, seconds=1200)
    tips = {peer.id: peer.round.tip.id for peer in group.live()}
    assert all(len(forks(peer)) == 1 for peer in group.live())
    heavier = max(left, right, key=lambda half: len(half) * (half[0].round.tip.round - reached))
    group.heal()
    group.unite()
    assert all(peer.round.chain.on_path(tips[heavier[0].id]) for peer in group.live())
    group.reach(group[1].round.tip.round + 2)


def test_a_lone_peer_that_was_cut_off_comes_back_to_the_quorum_s_lineage(swarm):
    group = swarm(3)
    group.reach(1)
    group[2].tokens_per_step = 100_000  # it boasts of more tokens than all others together
    group.cut([group[0], group[1]], [group[2]])
    reached = group[0].round.tip.round
    group.reach(reached + 4, seconds=900, peers=[group[2]])
    assert len(forks(group[2])) == 1
    alone, ours = group[2].round.tip, group[0].round.tip
    assert alone.tokens > ours.tokens, "more tokens, and less credit"
    group.heal()
    group.unite()
    assert all(not forks(peer) for peer in group.live())
    assert group[2].round.chain.on_path(ours.id)
    assert group[2].generation == 1
    group.reach(group[2].round.tip.round + 2)
    assert contributors(group, group[0]) == [0, 1, 2]


def test_an_empty_fork_moves_its_signers_only(swarm):
    """A voter that has forked without a certificate comes back: the others stay, and it returns to them."""
    group = swarm(3)
    group.reach(1)
    group.cut([group[0], group[1]], [group[2]])
    assert group.run(600, lambda: group[2].round.tip.is_fork)
    fork = forks(group[2])[0]
    stayed = group[0].round.tip.id
    group.heal()
    for other in (group[0], group[1]):
        group.transmit(group[2], other.id, Cert(fork))
    group.run(1)
    assert not any(forks(peer) for peer in group.live()[:2])
    group.unite()
    assert all(not forks(peer) and peer.round.chain.on_path(stayed) for peer in group.live())


def test_an_empty_fork_under_the_tip_itself_moves_nobody_who_did_not_sign_it(swarm):
    """The quorum has not moved on meanwhile: even then a FORK of others is none of its business."""
    group = swarm(3)
    group.reach(1)
    group.cut([group[0]], [group[1]], [group[2]])
    assert group.run(600, lambda: any(peer.round.tip.is_fork for peer in group.live()))
    first = next(peer for peer in group.live() if peer.round.tip.is_fork)
    others = [peer for peer in group.live() if not peer.round.tip.is_fork]
    before = {peer.id: peer.round.tip.id for peer in others}
    fork = forks(first)[0]
    for other in others:
        other.do(other.round.receive(group.now, first.id, Cert(fork)))
        assert other.round.tip.id == before[other.id]
    group.heal()
    group.reach(3, seconds=600)
    group.unite()


def test_a_heavier_lineage_whose_bytes_nobody_holds_is_not_followed_and_holds_nobody_up(swarm):
    group = swarm(5)
    group.reach(1)
    lost, rest = [group[0], group[1], group[2]], [group[3], group[4]]
    group.cut(lost, rest)
    reached = group[0].round.tip.round
    group.reach(reached + 3, seconds=900, peers=rest)
    links = group[0].round.chain.lineage(group[0].round.tip.id)
    cut_at = group[3].round.chain.lineage(group[3].round.tip.id)
    fresh = [link for link in links if link.id not in {known.id for known in cut_at}]
    assert len(fresh) >= 3
    for peer in lost:
        group.kill(peer)
        for entry in peer.history:
            if entry.certificate is not None and entry.link in fresh:
                peer.blobs.discard_results(peer.round.chain.tip_of(entry.certificate.value.parent).base)
        for state in peer.store.saved_states().values():
            state.unlink()
    group.cut(rest)
    tips = {peer.id: peer.round.tip for peer in rest}
    for peer in rest:
        for link in fresh:
            peer.do(peer.round.receive(group.now, rest[0].id, Cert(link)))
    group.reach(max(tip.round for tip in tips.values()) + 3, peers=rest)
    for peer in rest:
        assert fresh[-1].id in peer.round.chain, "known"
        assert not peer.round.chain.lineages.holds(fresh[0].id)
        assert peer.round.chain.on_path(tips[peer.id].id), "and not followed"
        assert "lineage_unreachable" not in peer.notes
    group.island = {}
    for peer in lost:
        group.start(peer)  # from what is left on its disk
    group.unite()
    group.reach(group[0].round.tip.round + 2)
    assert all(peer.round.chain.on_path(tips[rest[0].id].base) for peer in group.live())


def sleepy(swarm, count):
    """A group whose rounds are long, so that an hour is few of them, and whose patience is short."""
    group = swarm(count, fork_after_s=60.0, heartbeat_s=5.0, gone_after_s=20.0)
    for peer in group.live():
        peer.step_s = 20.0
    group.reach(2, seconds=2000)
    return group


def test_a_peer_that_was_frozen_for_an_hour_does_not_fork_when_it_wakes(swarm):
    group = sleepy(swarm, 3)
    reached = group.now
    group.freeze(group[2], 3600)
    group.run(3700)
    assert group[0].round.tip.round >= 2 + 3600 // 400 - 1
    group.reach(group[0].round.tip.round + 1, seconds=1000)
    group.unite()
    assert all(not forks(peer) for peer in group.live())
    assert "fork" not in group[2].notes
    assert group.now - reached < 3600 + 1500


def test_a_lone_peer_that_wakes_after_an_hour_waits_the_whole_patience_anew(swarm):
    group = sleepy(swarm, 3)
    group.run(450)  # the other two are gone for good in the midst of a round
    group.kill(group[0])
    group.kill(group[1])
    assert group.run(500, lambda: group[2].round.decree.failed >= 2)
    group.freeze(group[2], 3600)
    woke = group.now + 3600
    group.run(3600 + 60 * 3 - 10)
    assert not group[2].round.tip.is_fork
    assert group.run(60 + 3 * 20, lambda: group[2].round.tip.is_fork), group.now - woke


def test_a_group_that_slept_for_an_hour_goes_on_without_a_fork(swarm):
    group = sleepy(swarm, 2)
    for peer in group.live():
        group.freeze(peer, 3600)
    group.run(3601)
    group.reach(4, seconds=2000)
    assert all(not forks(peer) for peer in group.live())


# Coming and going.


def leavers(peer):
    """Who said LEAVE in the certificates of a peer's log."""
    values = [entry.certificate.value for entry in peer.history if entry.certificate is not None]
    return {record.peer for value in values for record in value.records if record.kind is Standing.LEAVE}


def test_the_most_senior_of_two_leaves_and_the_other_goes_on_at_once(swarm):
    group = swarm(2)
    group.reach(1)
    group[0].leave()
    assert group.run(100, lambda: not group[0].alive), "it stays until the value that removes it, then goes"
    began, reached = group.now, group[1].round.tip.round
    assert group[0].id in leavers(group[1])
    assert group[0].id in {vote.peer for vote in group[1].history[-1].certificate.votes}
    group.reach(reached + 3)
    assert group.now - began < 3 * 20 + 15
    assert voters(group, group[1]) == [1]
    assert not forks(group[1])


@pytest.mark.parametrize("who", [0, 1, 2])
def test_one_of_three_leaves_and_the_others_are_not_held_up(swarm, who):
    group = swarm(3)
    group.reach(1)
    group.run(10)
    group[who].leave()
    assert group.run(30, lambda: not group[who].alive)
    began, reached = group.now, group.live()[0].round.tip.round
    group.reach(reached + 4)
    assert group.now - began < 4 * 20 + 20
    assert who not in voters(group, group.live()[0]), "removed by its record, or for its silence"
    assert all(not forks(peer) for peer in group.live())


def test_all_leave_one_after_another_and_nothing_waits(swarm):
    group = swarm(3)
    group.reach(1)
    for who in (1, 0, 2):
        group[who].leave()
        assert group.run(60, lambda peer=group[who]: not peer.alive)


def test_a_run_grows_from_one_peer_to_eight_and_shrinks_back_to_one(swarm):
    group = swarm(8, voters=1, start=1, admit_after=2, numel=2048)
    group.reach(1)
    for late in list(group.peers.values())[1:]:
        group.start(late)
        group.run(25)
    assert group.run(900, lambda: len(group[0].round.tip.voters) == 8), group.story(group.live())
    group.unite()
    assert voters(group, group[7])[0] == 0
    for who in (0, 3, 7, 1, 5, 2, 4):
        group.run(2)
        group[who].leave()
        group.run(1)
        assert not group[who].alive or group.run(120, lambda peer=group[who]: not peer.alive), group.story(group.live())
    group.reach(group[6].round.tip.round + 2)
    assert voters(group, group[6]) == [6]
    assert not forks(group[6])
    group.check_exactness()


def test_everybody_joins_at_once_and_nobody_s_round_is_held_up(swarm):
    group = swarm(8, voters=1, start=1, admit_after=1, numel=2048)
    group.reach(2)
    began, reached = group.now, group[0].round.tip.round
    for late in list(group.peers.values())[1:]:
        group.start(late)
    group.reach(reached + 4, peers=[group[0]])
    assert group.now - began < 5 * (20 + 8)
    assert group.run(200, lambda: len(group[0].round.tip.voters) == 8), voters(group, group[0])
    group.unite()
    group.reach(group[0].round.tip.round + 1)
    assert contributors(group, group[0]) == list(range(8))


def test_a_peer_with_the_owners_ticket_votes_after_its_first_contribution(swarm):
    group = swarm(3, voters=2, start=2, admit_after=0)
    group.reach(1)
    group[2].ticket = sign_ticket(group.identities[0], group.manifest.run_id, group[2].id)
    group.start(group[2])
    assert group.run(100, lambda: voters(group, group[0]) == [0, 1, 2])
    group.reach(group[0].round.tip.round + 2)


def test_more_contributors_than_voters_can_be_and_all_are_in_it(swarm):
    group = swarm(34, voters=3, numel=1024, admit_after=1, heartbeat_s=4.0, gone_after_s=16.0)
    group.reach(2, seconds=200, peers=[group[0]])
    assert contributors(group, group[0]) == list(range(34))
    assert group.run(100, lambda: len(group[0].round.tip.voters) == 31)
    group.unite(60)
    group.check_exactness()


def test_who_cannot_vote_is_no_voter_any_more_and_goes_on_contributing(swarm):
    group = swarm(3)
    group.reach(1)
    group[1].cannot_vote = group[1].round.cannot_vote = True
    assert group.run(100, lambda: voters(group, group[0]) == [0, 2])
    group.reach(group[0].round.tip.round + 2)
    assert contributors(group, group[0]) == [0, 1, 2]
    assert group[1].round.standing() is Standing.VOTER, "it does not ask to vote again"
    assert voters(group, group[0]) == [0, 2]


def test_after_a_lost_disk_a_vote_counts_only_once_a_certificate_names_the_new_journal(swarm):
    group = swarm(3)
    group.reach(2)
    old = group[2].journal.id
    group.kill(group[2])
    group[2].lose_disk()
    counted = []

    def watch(peer, effect):
        if isinstance(effect, Commit):
            votes = [vote for vote in effect.certificate.votes if vote.peer == group[2].id]
            counted.extend((vote.journal, effect.certificate.value.round) for vote in votes)

    group.on_effect = watch
    group.start(group[2])
    fresh = group[2].journal.id
    assert fresh != old

    def named():
        return any(entry.journal == fresh for entry in group[0].round.tip.electorate)

    assert group.run(300, named)
    at = group[0].round.tip.round
    assert all(journal != fresh for journal, number in counted if number <= at), "no vote under a journal not named"
    group.reach(at + 3)
    assert fresh in {journal for journal, number in counted if number > at}
    assert voters(group, group[0]) == [0, 1, 2], "seniority is kept"


def test_all_disks_but_one_are_lost_and_the_run_goes_on(swarm):
    group = swarm(3)
    group.reach(2)
    for peer in (group[1], group[2]):
        group.kill(peer)
        peer.lose_disk()
        group.start(peer)
    group.reach(group[0].round.tip.round + 3, seconds=900)
    group.unite()
    journals = {entry.journal for entry in group[0].round.tip.electorate}
    assert {group[1].journal.id, group[2].journal.id} <= journals


# Pace.


def test_a_round_by_duration_ends_for_fast_and_slow_alike(swarm):
    group = swarm(3, round_s=12.0)
    group[1].step_s, group[2].step_s = 3.0, 5.0
    group.reach(1)
    began, reached = group.now, group[0].round.tip.round
    group.reach(reached + 4)
    assert (group.now - began) / 4 < 15
    tokens = {c.peer: c.tokens for c in group[0].history[-1].certificate.value.contributions}
    assert len(tokens) == 3
    assert tokens[group[0].id] > 2 * tokens[group[1].id] > tokens[group[2].id]
    assert {entry.certificate.ballot for entry in group[0].history} == {0}
    group.check_exactness()


def test_a_round_by_tokens_ends_when_all_together_have_trained_on_them(swarm):
    group = swarm(3, round_tokens=3000)
    group[1].step_s, group[2].step_s = 2.0, 4.0
    group.reach(1)
    began, reached = group.now, group[0].round.tip.round
    group.reach(reached + 3)
    assert (group.now - began) / 3 == pytest.approx(3000 / (100 + 50 + 25), abs=5)
    value = group[0].history[-1].certificate.value
    assert 2400 <= sum(c.tokens for c in value.contributions) <= 3900
    group.check_exactness()


def test_no_round_is_shorter_than_the_manifest_allows(swarm):
    group = swarm(2, min_round_s=30.0)
    group.reach(1)
    began = group.now
    group.reach(group[0].round.tip.round + 2)
    assert (group.now - began) / 2 > 29


# Offences.


def test_two_votes_in_one_ballot_are_noted_and_their_signer_is_heard_no_more(swarm):
    group = swarm(5)
    group.reach(1)
    said = []

    def vote_twice(peer, effect):
        if not said and isinstance(effect, Send) and isinstance(effect.message, Voted) and peer is group[3] and (
            effect.message.vote.parent == group[2].round.tip.id == peer.round.tip.id
        ):
            said.append(effect.message.vote)
            for other in (group[0], group[1], group[4]):  # too few are left to certify: both votes are heard in time
                group.kill(other)

    group.on_effect = vote_twice
    assert group.run(200, lambda: bool(said))
    vote, witness = said[0], group[2]
    group.run(1)
    assert witness.round.tip.id == vote.parent
    lie = Vote(vote.parent, vote.ballot, bytes(32), vote.peer, vote.journal, b"")
    lie = dataclasses.replace(lie, signature=group[3].identity.sign("vote", lie.payload()))
    witness.do(witness.round.receive(group.now, group[3].id, Voted(dataclasses.replace(lie, signature=bytes(64)))))
    assert "bad_vote" in witness.notes, "a forged one proves nothing"
    assert "equivocation" not in witness.notes
    group.transmit(group[3], witness.id, Voted(lie))
    group.run(1)
    assert "equivocation" in witness.notes
    assert group[3].id in witness.round.banned
    others = [group[0], group[1], group[4]]
    for peer in others:
        group.start(peer)
    group.reach(witness.round.tip.round + 3, peers=[witness, *others], seconds=900)


def test_a_last_promise_is_refused_while_a_quorum_is_there(swarm):
    """One impatient voter does not take the others' votes away from them."""
    group = swarm(3)
    group.reach(1)
    group.run(5)
    tip = group[0].round.tip.id
    group.transmit(group[2], group[0].id, Prepare(tip, 0, bytes(16), Rank.VOTERS))
    group.run(1)
    assert not group[0].round.decree.acceptor.left
    group.reach(3)
    assert all(not forks(peer) for peer in group.live())


def test_the_first_journal_is_replaced_at_the_first_certificate(swarm):
    group = swarm(3)
    group.reach(1)
    assert {entry.journal for entry in group[0].round.tip.electorate} == {peer.journal.id for peer in group.live()}
    assert {vote.journal for vote in group[0].history[0].certificate.votes} == {FIRST_JOURNAL}


def test_links_travel_and_are_answered_by_the_chain(swarm):
    """A GET of a link is answered by CERT; a link that nobody knows by nothing."""
    group = swarm(2)
    group.reach(2)
    link = group[0].history[0].link
    sent = group[0].round.receive(group.now, group[1].id, Get(BlobKind.LINK, link.id))
    answers = [e.message.link for e in sent if isinstance(e, Send) and isinstance(e.message, Cert)]
    assert link in answers
    assert isinstance(link, Certificate)
    sent = group[0].round.receive(group.now, group[1].id, Get(BlobKind.LINK, bytes(32)))
    assert not [e for e in sent if isinstance(e, Send) and isinstance(e.message, Cert)]
