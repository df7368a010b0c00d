"""Whether the electorate follows what peers want and do: wishes are honoured, silence evicts, and nobody else goes.

`oracle` recomputes each electorate from what its value says; here stands whether the value says what its leader must
have known: it had the READYs and votes that reached it. A chance is a value of a leader's own, proposed after a READY
of the peer under the same base had reached that leader, in which the peer's record would have had its effect. `watch`
asks at each proposal and certificate, `faults` at each departure.
"""

from typing import TYPE_CHECKING

from atoll.p2p.simulation.oracle import Place, WrongError, is_quorum
from atoll.protocol.certificate import Certificate, Value
from atoll.protocol.digest import Digest
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Message, Ready, Voted
from atoll.protocol.standing import Record, Standing

if TYPE_CHECKING:
    from atoll.p2p.simulation.peer import Peer
    from atoll.p2p.simulation.world import World

FRESH_S = 1.0  # a READY so young, and nobody can count as gone
CHANCES = 2  # missed in a row, under different bases: one could be a matter of moments

Ear = tuple[PeerId, int, PeerId]  # who heard, in which life, and whom


class Membership:
    def __init__(self, world: "World") -> None:
        self.world = world
        self._ready: dict[Ear, tuple[Digest, float]] = {}  # base of the last READY that came, and when
        self._votes: dict[Ear, tuple[Digest, float]] = {}  # certificate of the last vote that came in time, and when
        self._cast: dict[Digest, set[PeerId]] = {}  # who ever accepted a value
        self._missed: dict[tuple[PeerId, Standing], list[Digest]] = {}  # bases

    # What happens.

    def hears(self, peer: "Peer", sender: PeerId, message: Message) -> None:
        """A message has reached a peer."""
        ear = peer.id, peer.life, sender
        if isinstance(message, Ready):
            self._ready[ear] = message.base, self.world.clock.now
        elif isinstance(message, Voted) and message.vote.peer == sender:
            vote = message.vote
            if peer.round.chain.tip.id in (vote.parent, vote.certificate):
                self._votes[ear] = vote.certificate, self.world.clock.now

    def votes(self, peer: PeerId, certificate: Digest) -> None:
        """A voter has accepted a value, durably: it votes for it, if only before itself."""
        self._cast.setdefault(certificate, set()).add(peer)

    # What must be so. Each raises WrongError.

    def proposes(self, leader: "Peer", value: Value, above: Place) -> None:
        """A leader proposes a value of its own."""
        self._check_evictions(leader, value, above)
        for peer in self.world.peers:
            kind = self._wish(peer, above)
            if kind is None:
                continue
            missed = self._missed.setdefault((peer.id, kind), [])
            if any(record.peer == peer.id and record.kind is kind for record in value.records):
                missed.clear()
            elif above.base.id not in missed and self._has_chance(leader, peer, kind, value, above):
                missed.append(above.base.id)
                if len(missed) >= CHANCES:
                    raise WrongError("membership", self._story(peer, kind, leader))

    def certified(self, place: Place, above: Place) -> None:
        """Nobody attends by another's word: a silent voter could never be evicted."""
        link = place.link
        if not isinstance(link, Certificate):
            return
        attendance = link.value.attendance
        present = {peer for i, peer in enumerate(above.voted_on) if attendance[i // 8] >> i % 8 & 1}
        invented = present - self._cast.get(above.id, set())
        if invented:
            who = ", ".join(sorted(map(self.world.watch.timeline.name, invented)))
            raise WrongError("membership", f"certificate {place.id.hex()[:8]} says that {who} voted on its parent")

    def departs(self, peer: "Peer") -> None:
        """A peer that leaves believes that the others can do without it."""
        place = self.world.oracle.places.get(peer.round.chain.tip.id)
        if place is None or peer.round.finished or dict(place.electorate).get(peer.id) != peer.round.journal:
            return  # it has no vote here that the others could need
        patience = 1.5 * self.world.scenario.settings.gone_after_s  # of a slow clock
        since = self.world.clock.now - patience
        others = {p.id for p in self.world.peers if p is not peer and p.started and (p.alive or p.died_at > since)}
        voters = others & set(dict(place.electorate))
        if not self._hears_a_voter(peer, voters):
            return
        if not is_quorum(place.electorate, voters):
            raise WrongError("membership", f"leaves {len(voters)} voters behind that are no quorum without it")
        held = [self.world.watch.held.get(voter, set()) for voter in voters]
        if place.round > 0 and not any(place.base.id in states for states in held):
            raise WrongError("membership", "takes the newest certified state with it")

    def stays(self, peer: "Peer") -> None:
        """A peer has wanted to leave for long, and still believes that it may not."""
        place, now = self.world.oracle.places.get(peer.round.chain.tip.id), self.world.clock.now
        if place is None:
            return
        voters = set(dict(place.electorate))
        company = set()
        for other in self.world.honest():
            base, heard_at = self._ready.get((peer.id, peer.life, other.id), (b"", 0.0))
            fresh = now - FRESH_S < heard_at < now and base == place.base.id
            if fresh and other.id in voters and other is not peer and other.leaving_since is None:
                company.add(other.id)
        if company and (peer.id not in voters or is_quorum(place.electorate, company)):
            raise WrongError("membership", f"may not go, though {len(company)} voters hold what it holds")

    # How it is seen.

    def _hears_a_voter(self, peer: "Peer", voters: set[PeerId]) -> bool:
        """Whether there is surely somebody whom it would leave behind, and whom it has to wait for."""
        now, network = self.world.clock.now, self.world.network
        for voter in voters:
            other, (_, heard_at) = network.peers[voter], self._ready.get((peer.id, peer.life, voter), (b"", -1e9))
            close = other.alive and not other.hostile and network.connected(peer.id, voter) and not network.loss
            if close and other.leaving_since is None and now - FRESH_S < heard_at < now:
                return True
        return False

    def _wish(self, peer: "Peer", above: Place) -> Standing | None:
        """What a peer wants of the electorate behind `above`."""
        if not peer.alive or peer.hostile:
            return None
        named = dict(above.electorate).get(peer.id)
        if peer.leaving_since is not None:
            return Standing.LEAVE if named is not None else None
        if peer.cannot_vote:
            return Standing.CANNOT_VOTE if named is not None else None
        if named is not None:
            return Standing.JOIN if named != peer.disk.journal else None
        return Standing.JOIN if peer.plan.trains or peer.plan.ticket else None

    def _has_chance(self, leader: "Peer", peer: "Peer", kind: Standing, value: Value, above: Place) -> bool:
        now, moved_at = self.world.clock.now, self.world.watch.moved_at.get(peer.id, 0.0)
        if peer.round.chain.tip.base != above.base.id or peer.wishes_since > moved_at:
            return False
        if peer is not leader:
            base, heard_at = self._ready.get((leader.id, leader.life, peer.id), (b"", 0.0))
            if base != above.base.id or not moved_at <= heard_at < now:
                return False
        record = Record(peer.id, kind, peer.disk.journal, peer.plan.ticket if kind is Standing.JOIN else b"", b"")
        after = dict(self.world.oracle.electorate(value, above, (*value.records, record)))
        wanted = peer.disk.journal if kind is Standing.JOIN else None
        return after.get(peer.id) == wanted

    def _check_evictions(self, leader: "Peer", value: Value, above: Place) -> None:
        going = {record.peer for record in value.records if record.kind is not Standing.JOIN}
        staying = {entry.peer for entry in value.electorate}
        for peer, _ in above.electorate:
            if peer in staying or peer in going or self._is_hostile(peer):
                continue
            certificate, at = self._votes.get((leader.id, leader.life, peer), (b"", 0.0))
            if certificate == above.id and at < self.world.clock.now:
                name = self.world.watch.timeline.name(peer)
                raise WrongError("membership", f"evicts {name}, whose vote on the parent had reached it")

    def _is_hostile(self, peer: PeerId) -> bool:
        return any(p.id == peer and p.hostile for p in self.world.peers)

    def _story(self, peer: "Peer", kind: Standing, leader: "Peer") -> str:
        return (f"{peer.name} has wanted {kind.name} since {peer.wishes_since:.0f}; {CHANCES} values in a row leave it "
                f"out, the last one of {leader.name}, who had heard of it and could have put it in")


__all__ = ["Membership"]
