"""Whether parts are reduced at their time (rule 11): slow but alive is cut at grace, and nobody is cut before.

Goes by the READYs that reached the owner of a part, and by its own clock. `watch` asks at each reduction.
"""

from typing import TYPE_CHECKING

from atoll.p2p.round import effects
from atoll.p2p.simulation.oracle import WrongError
from atoll.protocol.digest import Digest
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Ready

if TYPE_CHECKING:
    from atoll.p2p.simulation.peer import Peer
    from atoll.p2p.simulation.world import World

LATE_S = 1.0  # of the owner's clock; it looks at its deadlines from time to time
FRESH_S = 1.0  # a READY so young, and nobody can count as gone


class Punctuality:
    def __init__(self, world: "World") -> None:
        self.world = world
        self._ready: dict[tuple[PeerId, int, PeerId], tuple[Ready, float]] = {}
        self._reduced: set[tuple[PeerId, int, Digest, int]] = set()  # by owner, life, base and part

    def hears(self, peer: "Peer", sender: PeerId, message: Ready) -> None:
        """A READY has reached a peer."""
        self._ready[peer.id, peer.life, sender] = message, self.world.clock.now

    def reduces(self, peer: "Peer", reduce: effects.Reduce) -> None:
        """Raises WrongError."""
        exchange = peer.round.decree.exchange
        start, key = exchange.start, (peer.id, peer.life, reduce.base, reduce.part)
        if start is None or key in self._reduced:
            return  # again: somebody came, or bytes were unusable
        self._reduced.add(key)
        past = peer.now - exchange.started_at - start.grace_ms / 1000
        if past > LATE_S:
            raise WrongError("grace", f"reduces part {reduce.part} {past:.1f} s after grace")
        if past > -1e-6:
            return
        listed = {source.peer for source in reduce.sources}
        for member in start.members:
            if member not in listed and (member, reduce.part) not in exchange.excluded and self._awaited(peer, member):
                name = self.world.watch.timeline.name(member)
                raise WrongError("grace", f"reduces part {reduce.part} {-past:.1f} s before grace, without {name}")

    def _awaited(self, peer: "Peer", member: PeerId) -> bool:
        """Whether an owner has every reason to wait for this member."""
        ready, at = self._ready.get((peer.id, peer.life, member), (None, 0.0))
        tip, young = peer.round.chain.tip, self.world.clock.now - at < FRESH_S
        other = self.world.network.peers.get(member)
        alive = other is not None and other.alive and not other.hostile
        connected = self.world.network.connected(peer.id, member) and not self.world.network.loss
        if ready is None or not (young and alive and connected):
            return False
        return ready.base == tip.base and ready.tip == tip.id and ready.trains and ready.root is not None


__all__ = ["Punctuality"]
