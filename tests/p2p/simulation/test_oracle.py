"""The oracle's own rules, on cases small enough to do by hand."""

from dataclasses import replace

import pytest

from atoll.p2p.simulation.oracle import Oracle, Place, WrongError, is_quorum
from atoll.p2p.simulation.plan import Plan, draw
from atoll.p2p.simulation.world import World
from atoll.protocol.certificate import Certificate

A, B, C, D = (bytes([i]) * 38 for i in range(1, 5))


def electorate(*peers: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((peer, bytes(16)) for peer in peers)


@pytest.mark.parametrize(
    ("voters", "enough"),
    [([A, B], True), ([A, C], True), ([B, C], False), ([B, C, D], True), ([A], False), ([A, A, A], False)],
)
def test_a_quorum_is_more_than_half_or_half_with_the_most_senior(voters: list[bytes], enough: bool) -> None:
    assert is_quorum(electorate(A, B, C, D), voters) is enough


class Tree:
    """Places without certificates behind them."""

    def __init__(self) -> None:
        scenario = draw(Plan(1, 1, frozenset()), 1)
        self.oracle = Oracle(scenario.manifest, scenario.genesis)
        self.oracle.genesis.electorate = electorate(A, B, C)

    def grow(self, above: Place, letter: str, *contributors: bytes, rank: int = 0) -> Place:
        place = replace(
            above, id=letter.encode() * 32, parent=above, rank=rank, contributors=frozenset(contributors), children=[])
        above.children.append(place)
        self.oracle.places[place.id] = place
        return place

    def best(self, *held: Place) -> Place:
        return self.oracle.best({place.id for place in held})


def test_a_quorums_lineage_outweighs_a_longer_one_of_a_lone_peer() -> None:
    tree = Tree()
    genesis = tree.oracle.genesis
    one = tree.grow(genesis, "b", A, B, C)
    fork = tree.grow(genesis, "a", rank=1)
    lone = tree.grow(tree.grow(fork, "c", A), "d", A)
    assert tree.best(one, lone) is one
    longer = tree.grow(tree.grow(lone, "e", A), "f", A)
    assert tree.best(one, longer) is longer


def test_a_lineage_counts_up_to_the_last_certificate_that_is_held() -> None:
    tree = Tree()
    one = tree.grow(tree.oracle.genesis, "b", A)
    two = tree.grow(one, "c", A)
    assert tree.best(one) is one
    assert tree.best(one, two) is two
    assert tree.best() is tree.oracle.genesis


def test_among_equals_the_better_class_then_the_smaller_id_wins() -> None:
    tree = Tree()
    genesis = tree.oracle.genesis
    second = tree.grow(tree.grow(genesis, "a", rank=2), "x", A)
    first = tree.grow(tree.grow(genesis, "b", rank=1), "y", A)
    third = tree.grow(tree.grow(genesis, "c", rank=1), "z", A)
    assert tree.best(second, first, third) is first


@pytest.fixture(scope="module")
def certified() -> tuple[Oracle, Certificate]:
    """A world's oracle without the last certificate of its chain, and that certificate."""
    world = World(Plan(3, 3, frozenset()), 5)
    assert world.run().round == 3
    last = world.peers[0].disk.log[-1]
    assert isinstance(last, Certificate)
    place = world.oracle.places.pop(last.id)
    assert place.parent is not None
    place.parent.children.remove(place)
    return world.oracle, last


def test_an_honest_certificate_holds(certified: tuple[Oracle, Certificate]) -> None:
    oracle, honest = certified
    assert oracle._certificate(honest, oracle.places[honest.value.parent]).state == honest.value.state


@pytest.mark.parametrize("field", ["round", "tokens", "state", "electorate", "contributions", "parts", "votes"])
def test_whatever_is_changed_in_a_certificate_is_seen(certified: tuple[Oracle, Certificate], field: str) -> None:
    oracle, honest = certified
    value = honest.value
    changed = {
        "round": {"round": 9}, "tokens": {"tokens": 1}, "state": {"state": bytes(32)},
        "electorate": {"electorate": value.electorate[::-1]},
        "contributions": {"contributions": value.contributions[1:]},
        "parts": {"parts": value.parts[::-1]},
    }.get(field)
    forged = replace(honest, votes=())
    if changed is not None:
        other = replace(value, **changed)
        forged = replace(honest, value=other, votes=tuple(replace(v, certificate=other.id) for v in honest.votes))
        forged_place = oracle.places[value.parent]
        oracle_check = oracle.check_votes
        oracle.check_votes = lambda *_: None  # its signatures are the next test's matter
        try:
            with pytest.raises(WrongError):
                oracle._certificate(forged, forged_place)
        finally:
            oracle.check_votes = oracle_check
    else:
        with pytest.raises(WrongError, match="no quorum"):
            oracle.add(forged)


def test_votes_for_another_value_are_no_quorum(certified: tuple[Oracle, Certificate]) -> None:
    oracle, honest = certified
    forged = replace(honest, value=replace(honest.value, tokens=1))
    with pytest.raises(WrongError, match="another ballot, value or parent"):
        oracle.add(forged)
