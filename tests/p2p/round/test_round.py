"""The round in virtual time: agreement and progress whoever dies when."""

import numpy as np
import pytest

from atoll.p2p.round.effects import Commit, Reduce, Save, Send, SendBlob, Step
from atoll.protocol.codecs.registry import codec
from atoll.protocol.messages import Propose, Start, Voted
from atoll.protocol.outer_step import PartReducer, step_part


def reach(group, number, seconds=400.0, peers=None):
    """Run until these (default: all live) peers have certified `number` rounds."""
    group.reach(number, seconds, peers)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_all_peers_certify_the_same_rounds(swarm, count):
    group = swarm(count)
    reach(group, 4)
    for peer in group.live():
        assert [e.certificate.ballot for e in peer.history[:4]] == [0] * 4
        assert all(len(e.certificate.value.contributions) == count for e in peer.history[:4])


def test_certified_average_is_the_weighted_mean_by_the_written_arithmetic(swarm):
    group = swarm(3)
    group[2].step_s = 1.3  # fewer steps by the time the others are READY: cut at a step boundary, with its own weight
    reach(group, 1)
    value = group[0].history[0].certificate.value
    coder = codec("int8")
    params, momentum = np.linspace(-1, 1, 5000, dtype=np.float32), np.zeros(5000, np.float32)
    for part, result in enumerate(value.parts):
        bounds = slice(part * 1024, min(part * 1024 + 1024, 5000))
        reducer = PartReducer(bounds.stop - bounds.start)
        for i, contribution in enumerate(value.contributions):
            if result.includes(i):
                peer = group.peers[contribution.peer]
                vector = group.gradient(peer, value.parent, contribution.tokens // 100)
                reducer.add(contribution.tokens, coder.decode(coder.encode(vector[bounds]), bounds.stop - bounds.start))
        average = coder.decode(coder.encode(reducer.average()), bounds.stop - bounds.start)
        params[bounds], momentum[bounds] = step_part(
            params[bounds], momentum[bounds], average, learning_rate=0.7, momentum_factor=0.9
        )
    restored = group[1].store.saved_states()[value.id].read_bytes()
    assert restored == params.tobytes() + momentum.tobytes()


PHASES = {
    "start": lambda e: isinstance(e, Send) and isinstance(e.message, Start),
    "scatter": lambda e: isinstance(e, SendBlob),
    "reduce": lambda e: isinstance(e, Reduce),
    "step": lambda e: isinstance(e, Step),
    "propose": lambda e: isinstance(e, Send) and isinstance(e.message, Propose),
    "save": lambda e: isinstance(e, Save),
    "vote": lambda e: isinstance(e, Send) and isinstance(e.message, Voted),
    "apply": lambda e: isinstance(e, Commit),
}


@pytest.mark.parametrize("told", [True, False], ids=["seen", "silent"])
@pytest.mark.parametrize(
    ("phase", "who"),
    [
        (phase, who)
        for phase in PHASES
        for who in ("leader", "other")
        if who == "leader" or phase not in ("start", "propose")
    ],
)
def test_death_in_any_phase_ends_in_agreement_of_the_survivors(swarm, phase, who, told):
    group = swarm(5, seed=list(PHASES).index(phase))
    reach(group, 1)
    victims = []

    def kill(peer, effect):
        is_leader = peer.round.leader == peer.id
        if not victims and peer.round.chain.tip.round >= 1 and PHASES[phase](effect) and is_leader == (who == "leader"):
            victims.append(peer)
            group.kill(peer, told=told)

    group.on_effect = kill
    assert group.run(200, lambda: bool(victims))
    began = group.now
    reach(group, 3)
    assert group.now - began < 150


def test_two_of_five_die_and_the_rest_go_on_without_waiting_for_them(swarm):
    group = swarm(5)
    reach(group, 1)
    group.run(18)
    leader = group.peers[group[0].round.leader]
    group.kill(leader)
    group.kill(next(p for p in group.live()))
    reach(group, 3)
    began = group.now
    reach(group, 6)
    assert (group.now - began) / 3 < 30, "a round of 20 virtual seconds of training is held up by peers that are gone"


def test_no_quorum_certifies_nothing_and_goes_on_when_it_is_back(swarm):
    group = swarm(3)
    reach(group, 1)
    group.kill(group[1])
    group.kill(group[2])
    reached = group[0].round.chain.tip.round
    group.run(80)  # a lone voter of three goes on in a new lineage after L x 3 / 1 = 96 seconds
    assert group[0].round.chain.tip.round <= reached + 1
    group.start(group[1])
    reach(group, reached + 3, peers=[group[0], group[1]])


def test_half_including_the_most_senior_is_a_quorum_and_without_it_is_none(swarm):
    group = swarm(2)
    reach(group, 1)
    group.kill(group[1])
    reach(group, 4, peers=[group[0]])
    tip = group[0].round.chain.tip.round
    group.kill(group[0])
    group.start(group[1])
    group.run(45)  # half of two: L x 2 / 1 = 52 seconds
    assert group[1].round.chain.tip.round < tip


def test_a_restarted_peer_catches_up_from_results_and_contributes_again(swarm):
    group = swarm(4)
    reach(group, 1)
    victim = group[2]
    group.kill(victim)
    reach(group, 6, peers=[group[0], group[1], group[3]])
    group.start(victim)
    reach(group, 9)
    last = victim.history[-1].certificate.value
    assert victim.id in {c.peer for c in last.contributions}


def test_everybody_killed_and_restarted_goes_on_from_disk(swarm):
    group = swarm(3)
    reach(group, 3)
    group.run(7.3)
    for peer in group.live():
        group.kill(peer, told=False)
    for peer in group.peers.values():
        group.start(peer)
    reach(group, 6)


def test_lost_messages_delay_but_never_divide(swarm):
    group = swarm(4, seed=7)
    group.loss = 0.3
    reach(group, 4, seconds=2000)


def test_a_slow_peer_is_cut_at_grace_with_the_steps_it_has(swarm):
    group = swarm(3, grace_s=5.0)
    group[2].step_s = 5.0
    began = group.now
    reach(group, 3)
    assert group.now - began < 3 * (20 + 5) + 20
    value = group[0].history[1].certificate.value
    tokens = {c.peer: c.tokens for c in value.contributions}
    assert tokens[group[2].id] < tokens[group[0].id] // 3


def test_a_peer_outside_the_electorate_contributes_and_follows(swarm):
    group = swarm(4, voters=3)
    reach(group, 3)
    assert all(len(e.certificate.value.contributions) == 4 for e in group[3].history[1:3])


@pytest.mark.parametrize("seed", range(12))
def test_random_kills_and_restarts_never_divide_the_swarm(swarm, seed):
    group = swarm(5, seed=seed + 20)
    for _ in range(14):
        group.run(group.dice.uniform(1, 25))
        peer = group[group.dice.randrange(5)]
        if peer.alive and len(group.live()) > 3:
            group.kill(peer, told=group.dice.random() < 0.5)
        elif not peer.alive:
            group.start(peer)
        group.check_agreement()
    for peer in group.peers.values():
        if not peer.alive:
            group.start(peer)
    tip = max(p.round.chain.tip.round for p in group.live())
    reach(group, tip + 2, seconds=600)


def test_rounds_of_one_peer_leave_results_that_the_other_can_fetch(swarm):
    """A lone contribution and its average are the same bytes: dropping the one must not drop the other."""
    group = swarm(2)
    reach(group, 1)
    group.kill(group[1])
    reach(group, 4, peers=[group[0]])
    group.start(group[1])
    reach(group, 6)
