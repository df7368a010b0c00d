"""The ledger of DESIGN's rule 9, kept from outside: what every peer's next contribution has to carry along.

Follows each contribution from the gradient to the bytes and the certificates alone, part by part. The residual at a
base is the rest of the newest contribution of that peer which the base's lineage lists for that part; zero where there
is none, where it is more than `keep` certificates old, or where it is not at hand any more. Shares nothing with
`atoll.p2p.round.ledger` but the documented form: whole multiples of 2^-28. `watch` tells it what happens.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from atoll.p2p.simulation.oracle import Made, Oracle, Place, WrongError
from atoll.protocol.certificate import Certificate
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MismatchError
from atoll.protocol.identity import PeerId

if TYPE_CHECKING:
    from atoll.p2p.simulation.peer import Peer

Vector = npt.NDArray[np.float32]
Units = npt.NDArray[np.int64]

UNIT = 1 << 28
MOST_KEPT = 8
CLOSE = 1e-4  # relative; what rounding in another order may change


@dataclass
class Rest:
    """What a contribution left out, by part."""

    root: Digest
    round: int  # of its base
    weight: int
    parts: list[Units]


class Accounts:
    """Of every peer; idle where the manifest's codec has no error feedback."""

    def __init__(self, oracle: Oracle) -> None:
        exchange = oracle.exchange
        self.oracle, self.layout, self.codec = oracle, oracle.layout, oracle.contribution
        self.kept = bool(self.codec.error_feedback)
        self._keep, self._cap = min(MOST_KEPT, exchange.retain_rounds), exchange.residual_cap
        self._rests: dict[PeerId, dict[Digest, Rest]] = {}  # at hand, by base
        self._made: dict[PeerId, int] = {}  # weight of all that a peer ever made

    # What happens.

    def contributed(self, peer: "Peer", made: Made, gradient: Vector) -> None:
        """Before the contribution is journaled: it has to be the gradient and the residual, and nothing else.

        Raises WrongError.
        """
        if not self.kept:
            return
        place, weight = self.oracle.places[made.base], self.oracle.weight(made.contribution.tokens)
        rests, wrong = [], None
        for part, bounds in enumerate(self.layout):
            size = self.layout.size(part)
            own = np.rint(gradient[bounds].astype(np.float64) * (weight * UNIT)).astype(np.int64)
            residual = self._capped(self._residual(peer.id, place, part), own)
            carried = own + residual
            expected = (carried / (weight * UNIT)).astype(np.float32)
            decoded = self.codec.decode(made.parts[part], size)
            if made.parts[part] != self.codec.encode(expected) and not self._close(decoded, expected):
                wrong = wrong or self._story(part, decoded, own, residual, weight)
            rests.append(carried - np.rint(decoded.astype(np.float64) * UNIT).astype(np.int64) * weight)
        self._rests.setdefault(peer.id, {})[made.base] = Rest(made.contribution.root, place.round, weight, rests)
        self._made[peer.id] = self._made.get(peer.id, 0) + weight
        if wrong is not None:
            raise WrongError("ledger", wrong)

    def stands_at(self, peer: PeerId, number: int) -> None:
        """A peer's state is that of a certificate of this round: what is too old then is not kept."""
        rests = self._rests.get(peer)
        for base in [base for base, rest in rests.items() if number - rest.round > self._keep] if rests else ():
            del self._rests[peer][base]

    def lost(self, peer: PeerId) -> None:
        """Its disk is gone."""
        self._rests.pop(peer, None)

    def damaged(self, peer: PeerId, base: Digest | None) -> None:
        """The rest of one contribution is gone."""
        if base is not None:
            self._rests.get(peer, {}).pop(base, None)

    def check(self, peer: "Peer") -> None:
        """Whether a peer's ledger adds up, in itself and with the certificates. Raises WrongError."""
        ledger = peer.workshop.ledger
        if ledger is None:
            return
        try:
            ledger.check()
        except MismatchError as error:
            raise WrongError("ledger", str(error)) from error
        place = self.oracle.places.get(peer.workshop.state.parent)
        if place is None:
            return
        most, least = self._listed(peer.id, place)
        for part in range(self.layout.parts):
            made, listed, discarded = ledger.weights(part)
            if made > self._made.get(peer.id, 0) or discarded < 0 or made != listed + discarded:
                raise WrongError("ledger", f"part {part}: {made} made, {listed} in the state, {discarded} discarded")
            if not least[part] <= listed <= most[part]:
                raise WrongError(
                    "ledger", f"part {part}: it has {listed} in the state, the certificates list {most[part]}")

    # What must be so.

    def _residual(self, peer: PeerId, place: Place, part: int) -> Units | None:
        for certified, listing in _listings(peer, place):
            if place.round - certified.round >= self._keep:
                return None
            index, root = listing
            if _includes(certified.link, part, index):
                rest = self._at_hand(peer, certified, root)
                return None if rest is None else rest.parts[part]
        return None

    def _at_hand(self, peer: PeerId, certified: Place, root: Digest) -> Rest | None:
        base = certified.parent.base if certified.parent is not None else certified
        rest = self._rests.get(peer, {}).get(base.id)
        return rest if rest is not None and rest.root == root else None

    def _capped(self, residual: Units | None, own: Units) -> Units:
        if residual is None:
            return np.zeros_like(own)
        limit, size = self._cap * _norm(own), _norm(residual)
        return residual if size <= limit else np.rint(residual * (limit / size)).astype(np.int64)

    def _close(self, decoded: Vector, expected: Vector) -> bool:
        """Whether the bytes say the same but for rounding."""
        wanted = self.codec.decode(self.codec.encode(expected), expected.size)
        return bool(np.allclose(decoded, wanted, rtol=CLOSE, atol=CLOSE * float(np.abs(expected).max(initial=0.0))))

    def _story(self, part: int, decoded: Vector, own: Units, residual: Units, weight: int) -> str:
        scale = weight * UNIT
        alone = self._close(decoded, (own / scale).astype(np.float32))
        what = "nothing" if alone else "something else"
        size = _norm(residual) / scale
        return f"part {part} carries {what} besides its gradient; the residual listed there has a norm of {size:.3g}"

    def _listed(self, peer: PeerId, place: Place) -> tuple[list[int], list[int]]:
        """By part, the weight of the peer's contributions that the lineage lists: of all, and of those it must know."""
        most, least = [0] * self.layout.parts, [0] * self.layout.parts
        for certified, (index, root) in _listings(peer, place):
            made = self.oracle.made.get((peer, root))
            if made is None:
                continue
            weight, rest = self.oracle.weight(made.contribution.tokens), self._at_hand(peer, certified, root)
            known = rest is not None and place.round - certified.round < self._keep
            for part in range(self.layout.parts):
                if _includes(certified.link, part, index):
                    most[part] += weight
                    least[part] += weight if known else 0
        return most, least


def _listings(peer: PeerId, place: Place) -> "list[tuple[Place, tuple[int, Digest]]]":
    """Certificates from `place` back that list a contribution of this peer, with its index and root."""
    found, at = [], place
    while at.parent is not None:
        if isinstance(at.link, Certificate) and peer in at.contributors:
            found.append((at, next((i, c.root) for i, c in enumerate(at.link.value.contributions) if c.peer == peer)))
        at = at.parent
    return found


def _includes(link: object, part: int, index: int) -> bool:
    return isinstance(link, Certificate) and bool(link.value.parts[part].included[index // 8] >> index % 8 & 1)


def _norm(units: Units) -> float:
    values = units.astype(np.float64)
    return math.sqrt(float(np.add.reduce(values * values)))
