"""Every local token is in the state, in the residual or discarded, once (DESIGN rule 9; only with error feedback).

A codec with error feedback leaves most of a gradient out. Part by part, what it left out of a *listed* contribution is
the residual `u`, weighted by tokens, and rides on the next gradient: with w the contribution's weight and g its
gradient, what is encoded is C = enc(g + u / w), and what stays behind is the *rest*, w g + u - w dec(C).

Nothing is moved, so nothing can be moved twice: a rest is written down once, when its contribution is made, under the
certificate that the contribution belongs to (its base). The residual of a part at any certificate is the rest of the
newest contribution of ours that the lineage lists for that part: a pure function of the lineage and of the rests at
hand. Unwinding, replaying on another branch and a restart after a crash are all the same walk. Along a lineage a base
comes once, so no rest counts twice; a rest that is gone, damaged, or older than `keep` certificates is zero; so is the
residual where our contribution is listed under a root that is not at hand. Lost beats doubled.

All amounts are whole multiples of 2^-28: int64 vectors, in bounds by construction (see `compose`). The accounts are
linear digests of such vectors, sums modulo 2^64 under fixed odd multipliers: `made = state + u + discarded` holds for
them exactly where it holds element by element. In weights, that is counts of tokens, discarded = made - state is never
negative. A contribution counts as discarded until a certificate of the lineage lists it.

Knows no files and no codec: `p2p.workshop` encodes, `p2p.residuals` keeps the rests. Not thread-safe.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.protocol.certificate import Certificate, Contribution, Value
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError, MismatchError, NonFiniteError
from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import WEIGHT_LIMIT
from atoll.protocol.read import count, digest, exactly, fields

Vector = npt.NDArray[np.float32]
Fixed = npt.NDArray[np.int64]
Sums = npt.NDArray[np.uint64]

UNIT = 2.0**28
"""Units of 1 in fixed point: 2^-28 is far below what binary16 resolves, even where every weight is 1."""

LARGEST_NORM = 2.0**60
"""Of a part's weighted gradient in units. Residuals are capped at 4 times that (`residual_cap`), so every element and
every sum of two stays below 5 x 2^60 < 2^63: no overflow, and nothing saturates."""

MADE, USED, SENT, REST = range(4)
_ZERO = np.uint64(0)


@dataclass(frozen=True, eq=False)
class Entry:
    """One contribution of this peer; its rest lies elsewhere. `sums[part]` are digests of w g, the residual used,
    w dec(C) and the rest.
    """

    base: Digest
    round: int  # of the base
    weight: int
    root: Digest
    sums: Sums  # (parts, 4)

    def tree(self) -> list[Any]:
        return [self.base, self.round, self.weight, self.root, self.sums.astype("<u8").tobytes()]

    @classmethod
    def from_tree(cls, tree: Any, parts: int) -> "Entry":
        """Raises MalformedError."""
        base, number, weight, root, sums = fields(tree, 5)
        if count(weight, WEIGHT_LIMIT) < 1:
            raise MalformedError("a contribution of weight 0")
        table = np.frombuffer(exactly(sums, 32 * parts), "<u8").astype(np.uint64).reshape(parts, 4)
        return cls(digest(base), count(number), weight, digest(root), table)


@dataclass(frozen=True, eq=False)
class Mark:
    """The accounts at one certificate of the lineage, part by part."""

    id: Digest
    round: int
    residues: tuple[Entry | None, ...]  # whose rest is the residual
    state: Sums
    discarded: Sums
    listed: Fixed  # weight of our contributions in the state
    made: Sums  # by then, listed or not


@dataclass(frozen=True)
class Composed:
    """A part's gradient with its residual, in units: w g, the residual used, and what is to be encoded."""

    made: Fixed
    used: Fixed
    vector: Vector  # (g + u / w) float32


def compose(gradient: Vector, weight: int, residual: Fixed | None, cap: float) -> Composed:
    """What to encode of a part: a `(size,) float32` gradient plus the residual, which is capped in L2 norm.

    Raises NonFiniteError for a gradient that is not finite or too large for exact accounts.
    """
    exact = gradient.astype(np.float64) * (weight * UNIT)
    norm = _norm(exact)
    if not norm <= LARGEST_NORM:
        raise NonFiniteError(f"a part's gradient has a norm of {norm / weight / UNIT:.3g}: too much to keep account of")
    made = np.rint(exact).astype(np.int64)
    used = np.zeros_like(made)
    if residual is not None:
        left = _norm(residual.astype(np.float64))
        limit = cap * norm
        used = residual if left <= limit else np.rint(residual * (limit / left)).astype(np.int64)
    return Composed(made, used, ((made + used) / (weight * UNIT)).astype(np.float32))


def remainder(composed: Composed, weight: int, decoded: Vector) -> tuple[Fixed, Sums]:
    """The rest of a part once its encoding decodes to `decoded`; and the four sums that go into the `Entry`."""
    sent = np.rint(decoded.astype(np.float64) * UNIT).astype(np.int64) * np.int64(weight)
    rest = composed.made + composed.used - sent
    return rest, np.array([checksum(v) for v in (composed.made, composed.used, sent, rest)], np.uint64)


def _norm(values: npt.NDArray[np.float64]) -> float:
    """L2 norm by a plain sum: `np.linalg.norm` wakes BLAS's threads for every part, which costs ten times as much."""
    return math.sqrt(float(np.add.reduce(values * values)))


def checksum(values: Fixed) -> int:
    """Linear digest of a vector in units: differs, but for a chance of about 2^-63, where any element does."""
    return int(np.dot(values.view(np.uint64), _multipliers(values.size)))


@functools.lru_cache(maxsize=4)  # a layout has two sizes of part
def _multipliers(size: int) -> Sums:
    """Fixed pseudo-random odd numbers (splitmix64's finalizer over the index)."""
    mixed = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D0_49BB_1331_11EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed | np.uint64(1)


class Ledger:
    """Which rest is the residual of which part, along one lineage; `keep` certificates deep."""

    def __init__(self, own: PeerId, genesis: Digest, parts: int, keep: int, entries: Iterable[Entry] = ()) -> None:
        self.own, self.genesis, self.parts, self.keep = own, genesis, parts, keep
        self.entries = {entry.base: entry for entry in entries}
        self._made: Sums = np.zeros(parts, np.uint64)
        self._weight = 0
        self._marks: list[Mark] = []  # of the last `keep` certificates and the one before
        self._start(genesis, 0)

    @property
    def tip(self) -> Mark:
        return self._marks[-1]

    def residues(self, base: Digest) -> tuple[Entry | None, ...]:
        """By part, the contribution whose rest is the residual at `base`; none where that is too long ago to know."""
        return next((mark.residues for mark in reversed(self._marks) if mark.id == base), (None,) * self.parts)

    def round_of(self, base: Digest) -> int:
        """The round of a certificate of the lineage; the tip's where that is too long ago to know."""
        return next((mark.round for mark in reversed(self._marks) if mark.id == base), self.tip.round)

    def propose(self, entry: Entry) -> None:
        """A contribution of this peer was made. Its rest is durable enough to survive the process by now."""
        self.entries[entry.base] = entry
        self._made = self._made + entry.sums[:, MADE]
        self._weight += entry.weight

    def settle(self, value: Value) -> None:
        """The next certificate of the lineage: the only thing that moves a residual (part by part)."""
        entry, index = self._listed(value.contributions)
        before, residual = self.tip, self._residual()
        included = np.array([index is not None and part.includes(index) for part in value.parts], np.bool_)
        residues = tuple(
            entry if listed else None if held is None or value.round - held.round > self.keep else held
            for held, listed in zip(before.residues, included, strict=True)
        )
        moved = np.array([old is not new for old, new in zip(before.residues, residues, strict=True)], np.bool_)
        state, weights = before.state, before.listed
        discarded = self._discarded() + np.where(moved, residual, _ZERO)  # cut off, or too old, or used: see below
        if entry is not None:
            state = state + np.where(included, entry.sums[:, SENT], _ZERO)
            weights = weights + np.where(included, np.int64(entry.weight), np.int64(0))
            discarded = discarded - np.where(included, entry.sums[:, USED] + entry.sums[:, MADE], _ZERO)
        self._marks.append(Mark(value.id, value.round, residues, state, discarded, weights, self._made))
        del self._marks[: -self.keep - 1]

    def follow(self, lineage: Sequence[Certificate]) -> None:
        """Stand at the end of `lineage`, from genesis, oldest first: unwind to the common ancestor, then settle.

        Where that is too far back, the accounts begin anew with the contributions that are still at hand.
        """
        places = {self.genesis: 0, **{certificate.id: at for at, certificate in enumerate(lineage, 1)}}
        while self._marks and self.tip.id not in places:
            self._marks.pop()
        if not self._marks or len(lineage) - places[self.tip.id] > self.keep:
            start = max(0, len(lineage) - self.keep - 1)
            self._start(lineage[start - 1].id if start else self.genesis, start)
        for certificate in lineage[places[self.tip.id] :]:
            self.settle(certificate.value)

    def lose(self, entry: Entry) -> None:
        """The rest of this contribution is gone or damaged: zero wherever it was the residual."""
        if self.entries.get(entry.base) is entry:
            del self.entries[entry.base]
        self._marks = [_without(mark, entry) for mark in self._marks]

    def forget(self) -> list[Digest]:
        """Bases of contributions that are more than `keep` certificates old: their rests are of no use any more."""
        old = [entry.base for entry in self.entries.values() if self.tip.round - entry.round > self.keep]
        for base in old:
            del self.entries[base]
        return old

    def check(self) -> None:
        """Raise MismatchError unless made = state + u + discarded in every part, and no count is negative."""
        tip = self.tip
        total = tip.state + self._residual() + self._discarded()
        for part in np.flatnonzero(total != self._made):
            raise MismatchError(f"the ledger of part {part} does not add up: made is not state + residual + discarded.")
        for part in np.flatnonzero((tip.listed < 0) | (tip.listed > self._weight)):
            raise MismatchError(
                f"the ledger of part {part} lists a weight of {tip.listed[part]}, but {self._weight} was made in all."
            )

    def weights(self, part: int) -> tuple[int, int, int]:
        """(made, in the state, discarded) of a part in units of weight, since the accounts began."""
        listed = int(self.tip.listed[part])
        return self._weight, listed, self._weight - listed

    def _start(self, base: Digest, number: int) -> None:
        """Accounts of what is at hand, at a certificate before which nothing is known."""
        self._made, self._weight = np.zeros(self.parts, np.uint64), 0
        for entry in self.entries.values():
            self._made = self._made + entry.sums[:, MADE]
            self._weight += entry.weight
        nothing = np.zeros(self.parts, np.uint64)
        listed = np.zeros(self.parts, np.int64)
        self._marks = [Mark(base, number, (None,) * self.parts, nothing, self._made, listed, self._made)]

    def _listed(self, contributions: tuple[Contribution, ...]) -> tuple[Entry | None, int | None]:
        """Our contribution in a child of the tip, and its place; no entry where the one listed is not at hand."""
        entry = self.entries.get(self.tip.id)
        for index, contribution in enumerate(contributions):
            if contribution.peer == self.own:
                return (entry if entry is not None and entry.root == contribution.root else None), index
        return None, None

    def _discarded(self) -> Sums:
        """What was made since the tip was settled counts as discarded until a certificate lists it."""
        discarded: Sums = self.tip.discarded + (self._made - self.tip.made)
        return discarded

    def _residual(self) -> Sums:
        rests = [0 if held is None else held.sums[part, REST] for part, held in enumerate(self.tip.residues)]
        return np.array(rests, np.uint64)


def _without(mark: Mark, entry: Entry) -> Mark:
    gone = np.array([held is entry for held in mark.residues], np.bool_)
    residues = tuple(None if held is entry else held for held in mark.residues)
    discarded = mark.discarded + np.where(gone, entry.sums[:, REST], _ZERO)
    return Mark(mark.id, mark.round, residues, mark.state, discarded, mark.listed, mark.made)
