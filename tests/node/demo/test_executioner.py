"""Peers are killed in an exchange, the leader among them, once, and never so that the rest lose their quorum."""

from dataclasses import replace

from atoll.node.demo.executioner import Executioner
from atoll.node.demo.plan import DemoPlan
from atoll.node.demo.snapshot import Snapshot


def peers(count, *, number, state="TRAIN", leader=""):
    return [Snapshot(index, f"id-{index}", state=state, round=number, leader=leader) for index in range(1, count + 1)]


def test_nobody_dies_before_the_middle_round_or_outside_an_exchange():
    executioner = Executioner(DemoPlan(peers=4, kill=1))
    assert executioner.judge(peers(4, number=2, state="EXCHANGE", leader="id-2")) is None
    assert not executioner.is_near(peers(4, number=2))
    assert executioner.judge(peers(4, number=3, state="TRAIN", leader="id-2")) is None
    assert executioner.is_near(peers(4, number=3))


def test_the_leader_of_the_ballot_dies_in_the_middle_round_and_only_then():
    executioner = Executioner(DemoPlan(peers=5, kill=2))
    seen = peers(5, number=3)
    seen[4] = replace(seen[4], state="EXCHANGE", leader="id-2")
    verdict = executioner.judge(seen)
    assert verdict is not None
    assert verdict.victims == (2, 5)
    assert "peer 2, the ballot's leader" in verdict.sentence
    assert executioner.judge(seen) is None
    assert not executioner.is_near(seen)


def test_a_peer_that_is_a_round_behind_does_not_name_the_leader():
    executioner = Executioner(DemoPlan(peers=3, kill=1))
    seen = peers(3, number=4)
    seen[0] = replace(seen[0], round=3, state="EXCHANGE", leader="id-1")
    assert executioner.judge(seen) is None


def test_half_die_in_a_later_round_when_the_first_ballot_is_led_by_the_most_senior():
    executioner = Executioner(DemoPlan(peers=2, kill=1))
    assert executioner.judge(peers(2, number=3, state="EXCHANGE", leader="id-1")) is None
    verdict = executioner.judge(peers(2, number=4, state="VOTED", leader="id-2"))
    assert verdict is not None
    assert verdict.victims == (2,)


def test_in_the_last_round_somebody_dies_in_any_case_and_the_sentence_says_why_it_is_not_the_leader():
    executioner = Executioner(DemoPlan(peers=2, kill=1))
    verdict = executioner.judge(peers(2, number=7, state="EXCHANGE", leader="id-1"))
    assert verdict is not None
    assert verdict.victims == (2,)
    assert "has to live" in verdict.sentence
