"""Fork choice: the rule of DESIGN, told once more plainly and slowly, is what the quick one must always agree with."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.p2p.round.lineage import Lineages, Node
from atoll.protocol.digest import Digest

HORIZON = 2


def name(text):
    return text.encode().ljust(32, b".")


def peers(letters):
    return tuple(letter.encode() for letter in letters)


GENESIS = Node(name("genesis"), None, is_fork=False, rank=0, electorate=peers("abcde"), contributors=frozenset())


def certificate(text, parent, contributors="", electorate="abcde"):
    return Node(name(text), parent.id, False, 0, peers(electorate), frozenset(peers(contributors)))


def fork(text, parent, survivors, rank=1):
    return Node(name(text), parent.id, True, rank, peers(survivors), frozenset())


def line(text, parent, length, contributors, electorate="abcde"):
    nodes = []
    for index in range(length):
        nodes.append(certificate(f"{text}{index}", nodes[-1] if nodes else parent, contributors, electorate))
    return nodes


def grown(*nodes, held=None, horizon=HORIZON, genesis=GENESIS):
    lineages = Lineages(genesis, horizon)
    for node in nodes:
        lineages.add(node)
    for node in nodes if held is None else held:
        if not node.is_fork:
            lineages.hold(node.id)
    return lineages


# The rule, from DESIGN's words. `nodes` has genesis first; `held` names certificates, genesis among them.


def chosen(nodes: list[Node], held: set[Digest], horizon: int) -> Digest:
    known = {node.id: node for node in nodes}

    def best(top: Node) -> list[Node] | None:
        """The path from `top` to its best descendant, without `top`; None if there is no held certificate in it."""
        paths = []
        for child in nodes:
            if child.parent == top.id and (child.is_fork or child.id in held):
                below = best(child)
                if below is not None:
                    paths.append([child, *below])
        if paths:
            return min(paths, key=lambda path: (-credit(top, path), rank(path), -familiar(top, path), path[0].id))
        return None if top.is_fork else []

    def credit(top: Node, path: list[Node]) -> int:
        size, total, behind, known_voters = len(top.electorate), 0, False, set(top.electorate)
        for node in path:
            if node.is_fork:
                behind = True
            elif behind:
                total += min(size, len(node.contributors & known_voters))
            else:
                total += size
                known_voters |= set(node.electorate)
        return total

    def rank(path: list[Node]) -> int:
        return next((node.rank for node in path if node.is_fork), 0)

    def familiar(top: Node, path: list[Node]) -> int:
        named = set()
        for node in [node for node in lineage(known, top) if not node.is_fork][:horizon]:
            named |= node.contributors
        return sum(len(node.contributors & named) for node in path)

    path = best(nodes[0])
    return path[-1].id if path else nodes[0].id


def lineage(known: dict[Digest, Node], node: Node) -> list[Node]:
    """The node and all above it, genesis last."""
    return [node] if node.parent is None else [node, *lineage(known, known[node.parent])]


def certified_above(known: dict[Digest, Node], node: Node) -> Digest:
    return next(above.id for above in lineage(known, node)[1:] if not above.is_fork)


def fetchable(nodes: list[Node], held: set[Digest]) -> set[Digest]:
    known = {node.id: node for node in nodes}
    waiting = [node for node in nodes if not node.is_fork and node.id not in held]
    return {node.id for node in waiting if certified_above(known, node) in held}


# Random trees.


def tree(random: Random, size: int) -> list[Node]:
    """Parents before children: lines and bushes, FORKs of every rank, under one another and with nothing behind."""
    ids = [bytes([index]) * 32 for index in range(1, size + 1)]
    random.shuffle(ids)
    pool = "abcdefg"[: random.choice([2, 4, 7])]
    nodes = [replace(GENESIS, electorate=some(random, pool, least=1))]
    bushy, forking = random.choice([0.1, 0.3, 0.9]), random.choice([0.1, 0.3, 0.6])
    for id_ in ids:
        parent = random.choice(nodes) if random.random() < bushy else nodes[-1]
        if random.random() < forking:
            nodes.append(Node(id_, parent.id, True, random.randint(1, 3), some(random, pool, least=1), frozenset()))
        else:
            electorate = some(random, pool, least=1) if random.random() < 0.3 else parent.electorate
            nodes.append(Node(id_, parent.id, False, 0, electorate, frozenset(some(random, pool, least=0))))
    return nodes


def some(random: Random, pool: str, least: int):
    return peers(random.sample(pool, random.randint(least, len(pool))))


def partly_held(random: Random, nodes: list[Node], share: float) -> set[Digest]:
    known, held = {node.id: node for node in nodes}, {nodes[0].id}
    for node in nodes[1:]:
        if not node.is_fork and certified_above(known, node) in held and random.random() < share:
            held.add(node.id)
    return held


def arrive(random: Random, nodes: list[Node], held: set[Digest], horizon: int) -> Lineages:
    """Add and hold everything in some order that is possible."""
    lineages, known = Lineages(nodes[0], horizon), {node.id: node for node in nodes}
    added, holding = {nodes[0].id}, {nodes[0].id}
    while added != set(known) or holding != held:
        node = random.choice(nodes[1:])
        if node.id not in added and node.parent in added:
            lineages.add(node)
            added.add(node.id)
        elif node.id in added and node.id in held and certified_above(known, node) in holding:
            lineages.hold(node.id)
            holding.add(node.id)
    return lineages


any_seed, any_horizon = st.integers(0, 2**64), st.integers(1, 4)


@settings(max_examples=250, deadline=None)
@given(seed=any_seed, size=st.integers(0, 30), horizon=any_horizon, share=st.sampled_from([0.5, 0.9, 1.0]))
def test_the_choice_is_the_rules_for_any_tree_whatever_the_order_of_arrival(seed, size, horizon, share):
    random = Random(seed)
    nodes = tree(random, size)
    held = partly_held(random, nodes, share)
    expected = chosen(nodes, held, horizon)
    for _ in range(3):
        lineages = arrive(random, nodes, held, horizon)
        assert lineages.best == expected
        assert set(lineages.frontier()) == fetchable(nodes, held)
        assert {node.id for node in nodes if lineages.holds(node.id)} == held


@settings(max_examples=150, deadline=None)
@given(seed=any_seed, size=st.integers(1, 20), horizon=any_horizon, steps=st.integers(1, 50))
def test_the_choice_is_the_rules_after_every_hold_and_every_loss(seed, size, horizon, steps):
    random = Random(seed)
    nodes = tree(random, size)
    known, held, lineages = {node.id: node for node in nodes}, {nodes[0].id}, grown(genesis=nodes[0], horizon=horizon)
    for node in nodes[1:]:
        lineages.add(node)
    for _ in range(steps):
        certificates = sorted(held - {nodes[0].id})
        waiting = sorted(lineages.frontier())
        if certificates and (not waiting or random.random() < 0.2):
            gone = random.choice(certificates)
            lineages.lose(gone)
            held = {id_ for id_ in held if all(above.id != gone for above in lineage(known, known[id_]))}
        elif waiting:
            lineages.hold(waiting[0] if random.random() < 0.5 else random.choice(waiting))
            held = {node.id for node in nodes if lineages.holds(node.id)}
        assert lineages.best == chosen(nodes, held, horizon)
        assert set(lineages.frontier()) == fetchable(nodes, held)


@settings(max_examples=100, deadline=None)
@given(seed=any_seed, size=st.integers(0, 30))
def test_paths_and_ancestors_are_those_of_the_tree(seed, size):
    nodes = tree(Random(seed), size)
    known, lineages = {node.id: node for node in nodes}, grown(*nodes[1:], held=[], genesis=nodes[0])
    for node in nodes:
        above = [link.id for link in lineage(known, node)]
        assert lineages.path(node.id) == above[-2::-1]
        assert {other.id for other in nodes if lineages.is_ancestor(other.id, node.id)} == set(above)


# Single cases, with the credit worked out by hand.


def test_with_nothing_held_the_choice_is_genesis():
    only = certificate("only", GENESIS)
    assert grown().best == GENESIS.id
    assert grown(only, held=[]).best == GENESIS.id
    assert grown(only).best == only.id


def test_an_empty_fork_moves_nobody_and_one_certificate_behind_it_does():
    first = certificate("first", GENESIS, "abcde")
    left = fork("left", first, "ab")
    again = fork("again", left, "a")
    lineages = grown(first, left, again)
    assert lineages.best == first.id
    behind = certificate("behind", again, "a", "a")
    lineages.add(behind)
    assert lineages.best == first.id
    lineages.hold(behind.id)
    assert lineages.best == behind.id  # a lineage always stands for its last held certificate


def test_a_lone_peer_overtakes_a_quorum_of_five_only_with_more_than_five_times_its_certificates():
    """The quorum's three certificates count 5 each, 15; the lone peer's count 1 each."""
    quorum = line("quorum", GENESIS, 3, "abc")
    cut = fork("cut", GENESIS, "e")
    lone = line("lone", cut, 16, "e", "e")
    lineages = grown(*quorum, cut, *lone, held=[*quorum, *lone[:15]])
    assert lineages.best == quorum[-1].id  # 15 : 15, and no FORK is better than a FORK
    lineages.hold(lone[15].id)
    assert lineages.best == lone[15].id  # 15 : 16
    more = certificate("more", quorum[-1], "abc")
    lineages.add(more)
    lineages.hold(more.id)
    assert lineages.best == more.id  # 20 : 16


def test_a_thousand_certificates_of_a_lone_peer_yield_to_two_hundred_of_the_quorum():
    cut = fork("cut", GENESIS, "e")
    lone = line("lone", cut, 1000, "exyz", "exyz")  # whoever it admitted behind its FORK adds nothing
    quorum = line("quorum", GENESIS, 200, "abcde")
    lineages = grown(cut, *lone, *quorum, held=[*lone, *quorum[:199]])
    assert lineages.best == lone[-1].id  # 1000 : 995
    lineages.hold(quorum[-1].id)
    assert lineages.best == quorum[-1].id  # 1000 : 1000, the rank decides


def test_a_quorum_speaks_for_its_whole_electorate_and_survivors_for_those_who_contributed():
    silent = certificate("silent", GENESIS, "")
    cut = fork("cut", GENESIS, "abcd")
    busy = certificate("busy", cut, "abcd", "abcd")
    lineages = grown(silent, cut, busy)
    assert lineages.best == silent.id  # 5 : 4


def test_voters_admitted_before_the_fork_count_behind_it_and_later_ones_do_not():
    """At the branching vote a and b. One side admits c, then forks: c's contributions count, d's never do."""
    genesis = replace(GENESIS, electorate=peers("ab"))
    plain = line("plain", genesis, 2, "ab", "ab")  # 2 each: 4
    admits = certificate("admits", genesis, "ab", "abc")  # 2
    cut = fork("cut", admits, "c")
    behind = line("behind", cut, 3, "cd", "cd")  # 1 each
    lineages = grown(*plain, admits, cut, *behind, genesis=genesis, held=[*plain, admits, *behind[:2]])
    assert lineages.best == plain[-1].id  # 4 : 4, no FORK is better
    lineages.hold(behind[2].id)
    assert lineages.best == behind[2].id  # 4 : 5


def test_a_certificate_behind_a_fork_counts_no_more_than_the_electorate_at_the_branching():
    genesis = replace(GENESIS, electorate=peers("a"))
    plain = line("plain", genesis, 3, "a", "a")  # 3
    admits = certificate("admits", genesis, "a", "abcd")  # 1
    cut = fork("cut", admits, "abc")
    behind = line("behind", cut, 2, "abcd", "abc")  # 4 known contributors each, but 1 at most: 2
    assert grown(*plain, admits, cut, *behind, genesis=genesis).best == plain[-1].id  # 3 : 3


def test_equal_credit_goes_to_the_lower_rank_of_the_first_fork():
    voters = fork("z voters", GENESIS, "a", rank=1)
    again = fork("again", voters, "a", rank=3)
    holders = fork("a holders", GENESIS, "b", rank=2)
    first, second = certificate("first", again, "a", "a"), certificate("second", holders, "b", "b")
    assert grown(voters, again, holders, first, second).best == first.id


@pytest.mark.parametrize(("horizon", "winner"), [(1, "left"), (2, "right")])
def test_then_contributions_by_those_named_in_the_last_certificates_decide(horizon, winner):
    """x was named two certificates before the branching, which counts with K = 2 only; else the ids decide."""
    one, two = certificate("one", GENESIS, "x"), certificate("two", GENESIS, "y")
    two = replace(two, parent=one.id)
    left, right = fork("left", two, "a", rank=2), fork("right", two, "b", rank=2)
    tips = {"left": certificate("left tip", left, "a", "a"), "right": certificate("right tip", right, "bx", "b")}
    lineages = grown(one, two, left, right, *tips.values(), horizon=horizon)
    assert lineages.best == tips[winner].id


def test_at_last_the_smaller_id_of_the_branchings_child_decides():
    low, high = fork("a", GENESIS, "a"), fork("b", GENESIS, "b")
    under_low, under_high = certificate("z", low, "a", "a"), certificate("c", high, "b", "b")
    assert grown(low, high, under_low, under_high).best == under_low.id


def test_a_child_stands_for_what_is_best_by_its_own_branchings_measure():
    """At `cut` the pair wins; at genesis its x and y are nobody, and still it is what `cut` stands for."""
    plain = line("plain", GENESIS, 1, "abc")  # 5
    cut = fork("cut", GENESIS, "de")
    inner = fork("inner", cut, "d")
    lone = line("lone", inner, 6, "d", "d")  # at `cut` 1 each: 6; at genesis likewise
    pair = line("pair", cut, 4, "xy", "de")  # at `cut` 2 each: 8; at genesis x and y are nobody: 0
    lineages = grown(*plain, cut, inner, *lone, *pair, held=[*plain, *lone])
    assert lineages.best == lone[-1].id  # 6 : 5
    for node in pair:
        lineages.hold(node.id)
    assert lineages.best == plain[-1].id  # 0 : 5


def test_a_heavier_lineage_is_followed_as_far_as_its_states_are_held():
    mine = line("mine", GENESIS, 2, "abc")  # 10
    cut = fork("cut", GENESIS, "abcd")
    theirs = line("theirs", cut, 4, "abcd", "abcd")  # 4 each
    lineages = grown(*mine, cut, *theirs, held=[*mine, *theirs[:2]])
    assert lineages.best == mine[-1].id  # 10 : 8
    assert lineages.frontier() == (theirs[2].id,)
    lineages.hold(theirs[2].id)
    assert lineages.best == theirs[2].id  # 10 : 12
    assert lineages.frontier() == (theirs[3].id,)


def test_losing_undoes_holding_and_the_lost_are_fetched_last():
    mine, other = line("mine", GENESIS, 4, "abc"), certificate("other", GENESIS)
    lineages = grown(*mine, other, held=mine)
    lineages.lose(mine[1].id)
    assert lineages.best == mine[0].id
    assert [lineages.holds(node.id) for node in mine] == [True, False, False, False]
    assert lineages.frontier() == (other.id, mine[1].id)
    lineages.lose(other.id)
    assert lineages.frontier() == (mine[1].id, other.id)
    for node in mine[1:]:
        lineages.hold(node.id)
    assert lineages.best == mine[-1].id


def test_adding_and_holding_twice_is_harmless():
    first, second = line("only", GENESIS, 2, "a")
    lineages = grown(first, second)
    lineages.add(first)
    lineages.hold(first.id)
    assert lineages.best == second.id
    assert lineages.frontier() == ()
    assert first.id in lineages
    assert name("unknown") not in lineages


def test_what_cannot_be_is_refused():
    first, second = line("line", GENESIS, 2, "a")
    cut = fork("cut", first, "a")
    lineages = grown(first, second, cut, held=[])
    for impossible in (second.id, cut.id):
        with pytest.raises(ValueError, match="hold its ancestors first"):
            lineages.hold(impossible)
    with pytest.raises(ValueError, match="no result bytes"):
        lineages.lose(GENESIS.id)
    with pytest.raises(ValueError, match="no result bytes"):
        lineages.lose(cut.id)
    with pytest.raises(KeyError):
        lineages.add(certificate("orphan", certificate("unknown", GENESIS)))
    with pytest.raises(ValueError, match="rank"):
        lineages.add(fork("ranked", first, "a", rank=4))
    with pytest.raises(ValueError, match="horizon"):
        Lineages(GENESIS, 0)
    with pytest.raises(ValueError, match="genesis"):
        Lineages(first, 1)
