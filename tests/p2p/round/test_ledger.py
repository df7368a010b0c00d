"""The ledger: exact in every element, a function of the lineage, and never twice what was made once."""

import dataclasses
import random
from fractions import Fraction

import numpy as np
import pytest

from atoll.p2p.round import ledger as ledgers
from atoll.p2p.round.ledger import REST, UNIT, Entry, Ledger, checksum, compose, remainder
from atoll.protocol import canonical
from atoll.protocol.certificate import Certificate, Contribution, PartResult, Value, bitmap
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import ZERO_DIGEST, content_digest
from atoll.protocol.errors import MalformedError, MismatchError, NonFiniteError

GENESIS, ME, OTHER, PARTS, SIZE = b"g" * 32, b"m", b"a", 3, 64
TOP8 = codec("top8")


class World:
    """A ledger beside a plain account of every element: what was made, what a lineage's state holds, what is left."""

    def __init__(self, keep=8, seed=1):
        self.keep, self.random = keep, np.random.default_rng(seed)
        self.ledger = Ledger(ME, GENESIS, PARTS, keep)
        self.rests, self.amounts, self.count = {}, {}, 0

    def contribute(self, base, weight=5, scale=1e-2):
        """Contribute under `base`, which may be anywhere on the present lineage; the entry."""
        sums, rests, amounts = [], [], []
        for part, held in enumerate(self.ledger.residues(base)):
            gradient = (self.random.standard_normal(SIZE) * scale).astype(np.float32)
            residual = None if held is None else self.rests[held][part]
            composed = compose(gradient, weight, residual, 1.0)
            decoded = TOP8.decode(TOP8.encode(composed.vector), SIZE)
            rest, four = remainder(composed, weight, decoded)
            sums.append(four)
            rests.append(rest)
            amounts.append((composed.made, composed.made + composed.used - rest))
        root = content_digest(base + bytes([self.count]))
        entry = Entry(base, self.ledger.round_of(base), weight, root, np.stack(sums))
        self.count += 1
        self.rests[entry], self.amounts[entry] = rests, amounts
        self.ledger.propose(entry)
        return entry

    def check(self, lineage):
        """The ledger's own check, and the same element by element from the certificates alone."""
        self.ledger.check()
        state = np.zeros((PARTS, SIZE), np.int64)
        held = [None] * PARTS
        roots = {entry.root: entry for entry in self.rests}
        for certificate in lineage:
            for index, contribution in enumerate(certificate.value.contributions):
                for part, entry in enumerate(certificate.value.parts):
                    if contribution.peer == ME and entry.includes(index):
                        held[part] = roots[contribution.root]
                        state[part] += self.amounts[held[part]][part][1]
        made = sum(np.stack([amount[0] for amount in amounts]) for amounts in self.amounts.values())
        for part, entry in enumerate(held):
            residual = self.ledger.residues(self.ledger.tip.id)[part]
            if residual is not None or len(lineage) <= self.keep:
                assert residual is entry
            left = 0 if residual is None else self.rests[residual][part]
            discarded = made[part] - state[part] - left
            assert checksum(discarded) == int(self.ledger._discarded()[part])


def certify(lineage, contribution=None, parts=(), *, salt=0):
    """The next certificate, which lists another peer and, in these parts, this contribution of ours."""
    listed = [Contribution(OTHER, b"o" * 32, 9)]
    if contribution is not None:
        listed.append(Contribution(ME, contribution.root, 9))
    included = [{0, 1} if part in parts else {0} for part in range(PARTS)]
    results = tuple(PartResult(bitmap(indices, len(listed)), b"d" * 32) for indices in included)
    parent = lineage[-1].id if lineage else GENESIS
    value = Value(parent, len(lineage) + 1, salt, tuple(listed), results, b"", (), (), ZERO_DIGEST)
    return Certificate(value, 0, ())


def test_what_is_listed_leaves_its_rest_and_what_is_not_leaves_the_residual_as_it_was():
    world, lineage = World(), []
    first = world.contribute(GENESIS)
    lineage.append(certify(lineage, first, parts=(0, 1)))
    world.ledger.settle(lineage[-1].value)
    assert world.ledger.residues(lineage[-1].id) == (first, first, None)
    world.check(lineage)
    second = world.contribute(lineage[-1].id)
    world.check(lineage)
    lineage.append(certify(lineage, second, parts=(1, 2)))
    world.ledger.settle(lineage[-1].value)
    assert world.ledger.residues(lineage[-1].id) == (first, second, second)
    world.check(lineage)
    assert [world.ledger.weights(part) for part in range(PARTS)] == [(10, 5, 5), (10, 10, 0), (10, 5, 5)]


def test_an_empty_round_moves_nothing_but_time():
    world, lineage = World(), []
    first = world.contribute(GENESIS)
    lineage.append(certify(lineage, first, parts=range(PARTS)))
    world.ledger.settle(lineage[-1].value)
    empty = certify(lineage)
    nothing = tuple(PartResult(b"", ZERO_DIGEST) for _ in range(PARTS))
    lineage.append(Certificate(dataclasses.replace(empty.value, contributions=(), parts=nothing), 0, ()))
    world.ledger.settle(lineage[-1].value)
    assert world.ledger.residues(lineage[-1].id) == (first,) * PARTS
    world.check(lineage)


@pytest.mark.parametrize("weight", [1, 40, 1 << 23])
def test_the_parts_of_a_gradient_add_up_to_the_last_bit(weight):
    random = np.random.default_rng(weight)
    gradient, left = random.standard_normal(1000).astype(np.float32), None
    for _ in range(5):
        composed = compose(gradient, weight, left, 1.0)
        sent = TOP8.decode(TOP8.encode(composed.vector), 1000)
        rest, sums = remainder(composed, weight, sent)
        for i in range(0, 1000, 37):
            exact = Fraction(float(sent[i])) * weight * Fraction(UNIT)
            assert exact == int(composed.made[i]) + int(composed.used[i]) - int(rest[i])
        made, used, out, kept = (int(s) for s in sums)
        assert (made + used - out - kept) % 2**64 == 0
        left = rest


def test_what_is_left_out_is_sent_later():
    """A constant gradient: with feedback the sum of what was sent keeps up with what was made, in every element."""
    gradient = np.linspace(-1, 1, 256, dtype=np.float32)
    left, sent = None, np.zeros(256)
    for _ in range(200):
        composed = compose(gradient, 3, left, 4.0)
        decoded = TOP8.decode(TOP8.encode(composed.vector), 256)
        left, _ = remainder(composed, 3, decoded)
        sent += decoded
    assert np.abs(sent / 200 - gradient).max() < 0.05
    assert np.abs(TOP8.decode(TOP8.encode(gradient), 256) - gradient).max() > 0.8


@pytest.mark.parametrize("cap", [0.0, 0.5, 1.0])
def test_the_residual_is_capped_in_norm_and_the_cut_is_discarded_only_if_listed(cap):
    gradient = np.full(64, 1e-3, np.float32)
    residual = np.full(64, int(5 * UNIT), np.int64)
    composed = compose(gradient, 2, residual, cap)
    norm = np.linalg.norm(composed.used.astype(np.float64))
    assert norm == pytest.approx(cap * np.linalg.norm(composed.made.astype(np.float64)), rel=1e-4)
    assert np.array_equal(compose(gradient, 2, composed.used // 2, 1.0).used, composed.used // 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**40])
def test_a_gradient_that_cannot_be_kept_account_of_is_refused(value):
    gradient = np.ones(64, np.float32)
    gradient[7] = value
    with pytest.raises(NonFiniteError):
        compose(gradient, 1 << 10, None, 1.0)


def test_the_largest_amounts_do_not_overflow():
    gradient = np.full(64, 2.0**29 * 0.99, np.float32)  # a norm just below 2^32, that is 2^60 units
    composed = compose(gradient, 1, np.full(64, np.iinfo(np.int64).max // 2, np.int64), 4.0)
    rest, _ = remainder(composed, 1, TOP8.decode(TOP8.encode(composed.vector), 64))
    assert min(composed.made.min(), composed.used.min(), rest.min()) > 0
    total = [int(a) + int(b) for a, b in zip(composed.made, composed.used, strict=True)]
    assert max(total) < 2**63
    assert [int(x) for x in composed.made + composed.used] == total


def test_unwinding_restores_the_residual_of_the_ancestor_and_replays_what_the_other_branch_lists():
    world, trunk = World(), []
    first = world.contribute(GENESIS)
    trunk.append(certify(trunk, first, parts=(0, 1)))
    world.ledger.settle(trunk[-1].value)
    second = world.contribute(trunk[-1].id)
    ours = [*trunk, certify(trunk, second, parts=(0, 1, 2))]
    world.ledger.settle(ours[-1].value)
    third = world.contribute(ours[-1].id)
    ours.append(certify(ours, third, parts=(0,)))
    world.ledger.settle(ours[-1].value)
    world.check(ours)
    theirs = [*trunk, certify(trunk, second, parts=(2,), salt=1)]  # inherited by a FORK: the same contribution
    theirs.append(certify(theirs))
    world.ledger.follow(theirs)
    assert world.ledger.residues(theirs[-1].id) == (first, first, second)
    world.check(theirs)
    assert world.ledger.weights(0) == (15, 5, 10)
    world.ledger.follow(ours)
    assert world.ledger.residues(ours[-1].id) == (third, second, second)
    world.check(ours)
    world.ledger.follow(trunk)
    assert world.ledger.residues(trunk[-1].id) == (first, first, None)
    world.check(trunk)


def test_a_residual_older_than_what_is_kept_is_zero():
    world, lineage = World(keep=3), []
    first = world.contribute(GENESIS)
    lineage.append(certify(lineage, first, parts=range(PARTS)))
    world.ledger.settle(lineage[-1].value)
    for age in range(1, 5):
        lineage.append(certify(lineage))
        world.ledger.settle(lineage[-1].value)
        assert world.ledger.residues(lineage[-1].id) == ((first if age < 3 else None),) * PARTS
        world.check(lineage)
    assert world.ledger.forget() == [GENESIS]
    world.check(lineage)


def test_unwinding_further_than_is_kept_begins_anew_with_what_is_at_hand():
    world, trunk = World(keep=3), []
    for _ in range(8):
        entry = world.contribute(trunk[-1].id if trunk else GENESIS)
        trunk.append(certify(trunk, entry, parts=range(PARTS)))
        world.ledger.settle(trunk[-1].value)
        world.ledger.forget()
    other = trunk[:2]
    for salt in range(5):
        other = [*other, certify(other, salt=100 + salt)]
    world.ledger.follow(other)
    assert world.ledger.residues(other[-1].id) == (None,) * PARTS
    world.ledger.check()
    world.ledger.follow(trunk)  # and back, where the newest rests are still at hand
    assert world.ledger.residues(trunk[-1].id) == (entry,) * PARTS
    world.ledger.check()


def test_listed_bytes_that_are_gone_zero_the_residual():
    world, lineage = World(), []
    first = world.contribute(GENESIS)
    lineage.append(certify(lineage, first, parts=range(PARTS)))
    world.ledger.settle(lineage[-1].value)
    second = world.contribute(lineage[-1].id)
    del world.ledger.entries[lineage[-1].id]  # the disk lost it
    lineage.append(certify(lineage, second, parts=(1,)))
    world.ledger.settle(lineage[-1].value)
    assert world.ledger.residues(lineage[-1].id) == (first, None, first)
    world.ledger.check()
    world.ledger.lose(first)
    assert world.ledger.residues(lineage[-1].id) == (None, None, None)
    world.ledger.check()


def test_another_peer_that_copies_our_root_settles_nothing_of_ours():
    world = World()
    entry = world.contribute(GENESIS)
    copied = certify([])
    thief = (Contribution(OTHER, entry.root, 9),)
    parts = tuple(PartResult(bitmap({0}, 1), b"d" * 32) for _ in range(PARTS))
    world.ledger.settle(dataclasses.replace(copied.value, contributions=thief, parts=parts))
    assert world.ledger.residues(world.ledger.tip.id) == (None,) * PARTS
    world.ledger.check()


def test_check_notices_a_single_unit_in_a_single_element():
    world, lineage = World(), []
    first = world.contribute(GENESIS)
    lineage.append(certify(lineage, first, parts=range(PARTS)))
    world.ledger.settle(lineage[-1].value)
    rest = world.rests[first][1].copy()
    rest[17] += 1
    first.sums[1, REST] = checksum(rest)
    with pytest.raises(MismatchError, match="part 1 does not add up"):
        world.ledger.check()


def test_an_entry_survives_its_encoding_and_damage_is_refused():
    entry = World().contribute(GENESIS)
    tree = canonical.decode(canonical.encode(entry.tree()), limit=1 << 16)
    again = Entry.from_tree(tree, PARTS)
    assert (again.base, again.round, again.weight, again.root) == (entry.base, entry.round, entry.weight, entry.root)
    assert np.array_equal(again.sums, entry.sums)
    for bad in (tree[:4], (*tree[:2], 0, *tree[3:]), (*tree[:2], 1 << 25, *tree[3:]), (*tree[:4], tree[4][:-1])):
        with pytest.raises(MalformedError):
            Entry.from_tree(bad, PARTS)


@pytest.mark.parametrize("seed", range(30))
def test_in_a_random_tree_of_lineages_nothing_is_lost_or_counted_twice(seed):
    """Commits, misses, switches, restarts: always a function of the lineage, exact in every element."""
    dice, world = random.Random(seed), World(keep=50, seed=seed)
    tree = [[]]
    lineage = tree[0]
    proposed = {}
    for step in range(60):
        base = lineage[-1].id if lineage else GENESIS
        action = dice.random()
        if action < 0.4 and base not in proposed:
            proposed[base] = world.contribute(base, weight=dice.randint(1, 1000))
        elif action < 0.8:
            parts = [part for part in range(PARTS) if dice.random() < 0.7]
            listed = proposed.get(base) if dice.random() < 0.8 else None
            lineage = [*lineage, certify(lineage, listed, parts if listed else (), salt=step)]
            world.ledger.settle(lineage[-1].value)
            tree.append(lineage)
        elif action < 0.95:
            lineage = dice.choice(tree)
            world.ledger.follow(lineage)
        else:
            ledger = Ledger(ME, GENESIS, PARTS, 50, world.ledger.entries.values())
            ledger.follow(lineage)
            tip = lineage[-1].id if lineage else GENESIS
            assert ledger.residues(tip) == world.ledger.residues(tip)
            world.ledger = ledger
        if world.amounts:
            world.check(lineage)


def test_multipliers_of_a_short_part_are_those_of_a_long_one():
    assert np.array_equal(ledgers._multipliers(10), ledgers._multipliers(64)[:10])
