"""A demo's arguments are refused with a reason before anything starts, and a kill always leaves a quorum."""

import itertools

import pytest

from atoll.node.demo.plan import DemoPlan, choose_victims, is_quorum, most_killed
from atoll.protocol.errors import AtollError


@pytest.mark.parametrize(("arguments", "words"), [
    ({"peers": 0}, "--peers is 0"),
    ({"peers": 65}, "1 to 64"),
    ({"rounds": -1}, "--rounds is -1"),
    ({"inner_steps": 0}, "--inner-steps is 0"),
    ({"ranks": 0}, "--ranks is 0"),
    ({"kill": -1}, "--kill is -1"),
    ({"kill": 1, "rounds": 0}, "--rounds"),
    ({"peers": 4, "kill": 9}, "leaves no quorum"),
    ({"peers": 4, "kill": 3}, "At most 2 may be killed"),
    ({"peers": 1, "kill": 1}, "use more peers"),
])
def test_a_plan_that_cannot_work_is_refused_with_the_reason(arguments, words):
    with pytest.raises(AtollError, match=words) as refused:
        DemoPlan(**arguments).check()
    needs_quorum = arguments.get("kill", 0) > 0 and arguments.get("rounds", 8) > 0
    assert refused.value.code == ("no_quorum" if needs_quorum else "usage")


@pytest.mark.parametrize("arguments", [
    {}, {"peers": 1}, {"peers": 64}, {"rounds": 0}, {"peers": 5, "kill": 2}, {"peers": 2, "kill": 1},
    {"peers": 40, "kill": 24},
])
def test_a_plan_that_can_work_is_accepted(arguments):
    DemoPlan(**arguments).check()


def test_the_most_that_may_die_is_what_an_exhaustive_search_finds():
    for peers in range(1, 8):
        everybody = range(1, peers + 1)
        found = max(count for count in range(peers) for dead in itertools.combinations(everybody, count)
                    if is_quorum(set(everybody) - set(dead), peers))
        assert most_killed(peers, peers) == found


def test_victims_include_the_leader_and_leave_a_quorum_wherever_that_is_possible():
    for peers in range(2, 8):
        alive = list(range(1, peers + 1))
        for leader, count in itertools.product(alive, range(1, most_killed(peers, peers) + 1)):
            victims = choose_victims(count, leader, alive, peers)
            possible = [dead for dead in itertools.combinations(alive, count)
                        if leader in dead and is_quorum(set(alive) - set(dead), peers)]
            assert (victims is not None) == bool(possible)
            if victims is not None:
                assert victims[0] == leader
                assert len(set(victims)) == count
                assert is_quorum(set(alive) - set(victims), peers)


def test_half_of_the_peers_never_die_with_the_most_senior_among_them():
    assert choose_victims(2, 1, [1, 2, 3, 4], 4) is None
    assert choose_victims(2, 3, [1, 2, 3, 4], 4) == (3, 4)
    assert choose_victims(2, None, [1, 2, 3, 4], 4) == (4, 3)


def test_peers_beyond_the_electorate_die_after_the_voters():
    victims = choose_victims(24, 5, list(range(1, 41)), 31)
    assert victims is not None
    assert victims[0] == 5
    assert set(range(32, 41)) <= set(victims)
    assert is_quorum(set(range(1, 41)) - set(victims), 31)


def test_peers_are_killed_in_the_middle_of_the_run():
    assert [DemoPlan(rounds=rounds).kill_round for rounds in (1, 2, 3, 8)] == [0, 0, 1, 3]
