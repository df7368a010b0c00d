"""The simulator's conscience: looks at every effect of every peer and says which property does not hold.

Asks `oracle` what must be so and the disks what is really there; never trusts what a peer thinks of itself. Records
violations, with time and timeline, and lets the run go on. Whether anything happens at all is `liveness`'s question.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atoll.p2p.round import effects
from atoll.p2p.round.effects import Effect
from atoll.p2p.simulation.accounts import Accounts, Vector
from atoll.p2p.simulation.disk import Link
from atoll.p2p.simulation.membership import Membership
from atoll.p2p.simulation.oracle import Made, Oracle, Place, WrongError, is_quorum, leading_order
from atoll.p2p.simulation.punctuality import Punctuality
from atoll.p2p.simulation.timeline import Timeline
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Contribution, Value, Vote
from atoll.protocol.digest import ZERO_DIGEST, Digest
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Blob, BlobKind, Cert, Message, Promise, Propose, Ready, Voted

if TYPE_CHECKING:
    from atoll.p2p.simulation.clock import Clock
    from atoll.p2p.simulation.peer import Peer

MAX_VIOLATIONS = 5
QUIET_NOTES = frozenset({"proposal_refused"})


@dataclass(frozen=True)
class Violation:
    seed: int
    time: float
    rule: str
    message: str
    timeline: tuple[str, ...]

    def tree(self) -> dict[str, Any]:
        return {"seed": self.seed, "time": round(self.time, 3), "property": self.rule, "message": self.message,
                "timeline": list(self.timeline)}


@dataclass
class Said:
    """What one peer has promised and accepted under one parent and one journal."""

    promised: int = -1  # in a message that left
    left: bool = False
    accepted: dict[int, Digest] = field(default_factory=dict)  # by ballot, as its disk had it
    cast: set[int] = field(default_factory=set)  # ballots whose vote has left


class Watch:
    def __init__(self, clock: "Clock", seed: int, oracle: Oracle, names: dict[PeerId, str]) -> None:
        self.clock, self.seed, self.oracle, self.timeline = clock, seed, oracle, Timeline(names)
        self.accounts = Accounts(oracle)
        self.violations: list[Violation] = []
        self.forks: set[Digest] = set()
        self.moved_at: dict[PeerId, float] = {}  # when a peer last moved on
        self.best_round = 0
        self.held: dict[PeerId, set[Digest]] = {}
        self._said: dict[tuple[PeerId, bytes, Digest], Said] = {}
        self._vouched: set[Vote] = set()
        self._proposed: dict[tuple[PeerId, Digest, int], Digest] = {}
        self._tally: dict[tuple[Digest, int, Digest], set[PeerId]] = {}
        self._chosen: dict[Digest, Digest] = {}
        self._last_seen: Any = None
        self.membership: Membership
        self.punctuality: Punctuality

    # Saying so.

    def accuse(self, rule: str, message: str, peer: "Peer | None" = None) -> None:
        text = f"{peer.name}: {message}" if peer is not None else message
        if any(v.rule == rule and v.message == text for v in self.violations):
            return
        self.timeline.add(self.clock.now, "-" if peer is None else peer.name, f"VIOLATION of {rule}: {message}")
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(
                Violation(self.seed, self.clock.now, rule, text, tuple(self.timeline.lines())))

    def note(self, peer: "Peer | None", what: str, subject: Any = None) -> None:
        self.timeline.add(self.clock.now, "-" if peer is None else peer.name, what, subject)

    def holds(self, check: Callable[..., None], *args: Any, peer: "Peer") -> None:
        """Accuse the peer of what the check raises."""
        try:
            check(*args)
        except WrongError as error:
            self.accuse(error.rule, str(error), peer)

    def _known(self, link: Link, peer: "Peer") -> Place | None:
        """The link's place in the tree, after its first meeting checked."""
        new = link.id not in self.oracle.places
        try:
            place = self.oracle.add(link)
        except WrongError as error:
            self.accuse(error.rule, str(error), peer)
            return None
        if new and place.parent is not None:
            self.holds(self.membership.certified, place, place.parent, peer=peer)
        return place

    # What peers do.

    def started(self, peer: "Peer") -> None:
        chain = peer.round.chain
        self.note(peer, f"starts at round {chain.tip.round}, journal {peer.disk.journal.hex()[:6]}")
        self.moved_at[peer.id] = self.clock.now
        self.held[peer.id] = {link.id for link in peer.disk.log if isinstance(link, Certificate)}
        self.accounts.stands_at(peer.id, chain.tip.round)
        self._check_state(peer)

    def contributed(
        self, peer: "Peer", base: Digest, own: Contribution, leaves: tuple[Digest, ...], gradient: Vector,
    ) -> None:
        parts = tuple(peer.disk.blobs.read(leaf) for leaf in leaves)
        for (maker, root), made in self.oracle.made.items():
            if maker == peer.id and made.base == base and made.contribution.journal == own.journal and root != own.root:
                self.accuse("immutable contribution", "journaled a second contribution under one base", peer)
        made = self.oracle.made[peer.id, own.root] = Made(base, own, parts)
        self.holds(self.accounts.contributed, peer, made, gradient, peer=peer)

    def effect(self, peer: "Peer", effect: Effect) -> None:
        """Called before an effect is carried out."""
        match effect:
            case effects.Send():
                self._sends(peer, effect)
            case effects.SendBlob():
                self._sends_blob(peer, effect.blob)
            case effects.Save():
                self.note(peer, "saves", self._saved(effect))
            case effects.Reduce():
                self.holds(self.punctuality.reduces, peer, effect, peer=peer)
            case effects.Commit() | effects.Enter() | effects.Adopt() | effects.Freeze():
                self._moves(peer, effect)
            case effects.Note():
                self.note(peer, f"note {effect.code}:", effect.message)
                if effect.code == "nondeterministic_cpu":
                    self.accuse("determinism", effect.message, peer)

    @staticmethod
    def _saved(effect: effects.Save) -> str:
        acceptor = effect.acceptor
        said = "nothing" if acceptor.accepted is None else f"{acceptor.accepted[0]}:{acceptor.accepted[1].id.hex()[:8]}"
        left = ", left" if acceptor.left else ""
        return f"promised {acceptor.promised}, accepted {said}{left} under {effect.parent.hex()[:8]}"

    def _moves(self, peer: "Peer", effect: Effect) -> None:
        match effect:
            case effects.Commit():
                self.note(peer, "commits", effect.certificate)
                place = self._known(effect.certificate, peer)
                if place is not None:
                    self._certified(place, effect.certificate, peer)
            case effects.Enter():
                self.note(peer, "enters", effect.fork)
                self._known(effect.fork, peer)
                self.forks.add(effect.fork.id)
                self.moved_at[peer.id] = self.clock.now
            case effects.Adopt():
                self.note(peer, "adopts", effect.target)
                for link in peer.round.chain.lineage(effect.target):
                    self._known(link, peer)
                self._check_adopted(peer, effect.target)
            case effects.Freeze():
                self.note(peer, "freezes")

    def _check_adopted(self, peer: "Peer", target: Digest) -> None:
        """Nobody leaves its lineage for one whose bytes it has yet to get."""
        for link in peer.round.chain.lineage(target):
            if isinstance(link, Certificate) and not peer.round.chain.on_path(link.id):
                results = [part.digest for part in link.value.parts if part.digest != ZERO_DIGEST]
                if any(peer.disk.blobs.size(result) is None for result in results):
                    self.accuse("bytes held", "goes over to a lineage whose result bytes it does not hold", peer)

    def commits(self, peer: "Peer", certificate: Certificate) -> None:
        """The moment in which a certificate is applied."""
        for part in certificate.value.parts:
            if part.digest != ZERO_DIGEST and peer.disk.blobs.size(part.digest) is None:
                self.accuse("bytes held", "applies a certificate whose result bytes it does not hold", peer)
        self.held.setdefault(peer.id, set()).add(certificate.id)
        self.moved_at[peer.id] = self.clock.now
        self.best_round = max(self.best_round, certificate.value.round)
        self.accounts.stands_at(peer.id, certificate.value.round)
        self.clock.after(0.0, self._check_later, peer, peer.life)

    def adopted(self, peer: "Peer", lineage: list[Link]) -> None:
        certificates = [link for link in lineage if isinstance(link, Certificate)]
        self.held.setdefault(peer.id, set()).update(link.id for link in certificates)
        self.accounts.stands_at(peer.id, certificates[-1].value.round if certificates else 0)
        self.moved_at[peer.id] = self.clock.now
        self.clock.after(0.0, self._check_later, peer, peer.life)

    def _check_later(self, peer: "Peer", life: int) -> None:
        if peer.alive and peer.life == life:
            self._check_state(peer)

    def _check_state(self, peer: "Peer") -> None:
        """Same tip, same bytes: the state held is what the oracle arrives at for the certificate on its stamp."""
        state, tip = peer.workshop.state, peer.round.chain.tip
        place = self.oracle.places.get(state.parent)
        if place is None:
            self.accuse("only certified values", "holds a state behind a link that was never certified", peer)
        elif state.digest(peer.workshop.layout) != place.state:
            self.accuse("same tip, same digest", f"its state at round {place.round} is not the certified one", peer)
        elif state.parent != tip.base:
            self.accuse("same tip, same digest", "its state does not belong to the certificate its tip stands on", peer)
        self.holds(self.accounts.check, peer, peer=peer)

    # What peers say.

    def _sends(self, peer: "Peer", effect: effects.Send) -> None:
        message = effect.message
        if isinstance(message, Ready):
            if message is not self._last_seen and message.root is not None:
                self._last_seen = message
                made = self.oracle.made.get((peer.id, message.root))
                if made is None or made.base != message.base or made.contribution.journal != message.journal:
                    self.accuse("immutable contribution", "announces a contribution that it did not journal so", peer)
            return
        self.timeline.add(self.clock.now, peer.name, "", effect)
        if message is self._last_seen:
            return
        self._last_seen = message
        self._says(peer, message)

    def _says(self, peer: "Peer", message: Message) -> None:
        match message:
            case Voted():
                if message.vote.peer == peer.id:
                    self.votes(peer, message.vote)
            case Promise():
                self._promises(peer, message)
            case Propose():
                self._proposes(peer, message)
            case Cert():
                place = self._known(message.link, peer)
                if place is not None and isinstance(message.link, Certificate):
                    self._certified(place, message.link, peer)

    def votes(self, peer: "Peer", vote: Vote) -> None:
        """A vote leaves: what it vouches for must be on its voter's disk, and nothing it said before may forbid it."""
        said = self._said.setdefault((peer.id, vote.journal, vote.parent), Said())
        if vote.ballot in said.cast:
            return
        said.cast.add(vote.ballot)
        if vote in self._vouched:
            return  # said before; since then the journal may have forgotten what is buried
        self._vouched.add(vote)
        acceptor = peer.disk.promises.get(vote.parent)
        accepted = None if acceptor is None else acceptor.accepted
        if accepted is None or accepted[1].id != vote.certificate or accepted[0] < vote.ballot:
            self.accuse("durable vote", f"a vote of ballot {vote.ballot} leaves before its record is on the disk", peer)
        else:
            for part in accepted[1].parts:
                if part.digest != ZERO_DIGEST and not peer.disk.blobs.is_durable(part.digest):
                    self.accuse("durable bytes", "a vote leaves before the bytes it vouches for are on the disk", peer)
        if said.accepted.get(vote.ballot) != vote.certificate:
            self.accuse("durable vote", f"votes in ballot {vote.ballot} for what it never journaled there", peer)
        self._count(peer, vote, None if accepted is None else accepted[1])

    def saved(self, peer: "Peer", save: effects.Save) -> None:
        """A record has become durable: nothing that this journal said before may forbid it."""
        place = self.oracle.places.get(save.parent)
        if place is None:
            self.accuse("chain", "promises or votes under a parent that nobody ever had", peer)
            return
        named = dict(place.electorate).get(peer.id)
        journal = named if named == FIRST_JOURNAL and place.round == 0 else peer.disk.journal
        said = self._said.setdefault((peer.id, journal, save.parent), Said())
        if save.acceptor.accepted is None:
            return
        ballot, value = save.acceptor.accepted
        self.membership.votes(peer.id, value.id)
        before = said.accepted.get(ballot)
        if before is None:
            if ballot < said.promised:
                self.accuse("promises kept", f"accepts in ballot {ballot} after a promise of {said.promised}", peer)
            if said.left:
                self.accuse("last promise kept", f"accepts in ballot {ballot} after its last promise", peer)
            said.accepted[ballot] = value.id
        elif before != value.id:
            self.accuse("one vote per ballot", f"accepts two values in ballot {ballot}", peer)

    def _count(self, peer: "Peer", vote: Vote, value: Value | None) -> None:
        """Every vote ever cast is counted here: a value may be decided without anybody's noticing."""
        above = self.oracle.places.get(vote.parent)
        if above is None or dict(above.electorate).get(vote.peer) != vote.journal or value is None:
            return
        voters = self._tally.setdefault((vote.parent, vote.ballot, vote.certificate), set())
        voters.add(vote.peer)
        if is_quorum(above.electorate, voters):
            self._decided(vote.parent, vote.certificate, peer)

    def _decided(self, parent: Digest, value: Digest, peer: "Peer") -> None:
        before = self._chosen.setdefault(parent, value)
        if before != value:
            both = f"{before.hex()[:8]} and {value.hex()[:8]}"
            self.accuse("agreement", f"two values are decided under {parent.hex()[:8]}: {both}", peer)

    def _certified(self, place: Place, certificate: Certificate, peer: "Peer") -> None:
        """Another set of signatures may come under a certificate known already: it must hold, too."""
        if place.parent is not None and place.link is not certificate:
            try:
                self.oracle.check_votes(certificate, place.parent)
            except WrongError as error:
                self.accuse(error.rule, str(error), peer)
        self._decided(certificate.value.parent, certificate.id, peer)

    def _promises(self, peer: "Peer", promise: Promise) -> None:
        said = self._said.setdefault((peer.id, promise.journal, promise.parent), Said())
        acceptor = peer.disk.promises.get(promise.parent)
        if acceptor is None or (promise.last is None and acceptor.promised < promise.ballot) or (
            promise.last is not None and not acceptor.left
        ):
            self.accuse("durable promise", f"a promise of {promise.ballot} leaves before it is on the disk", peer)
        newest = max((ballot for ballot in said.accepted if ballot < promise.ballot or promise.last), default=None)
        if newest is not None:
            told = promise.accepted
            if told is None or told[0] < newest:
                self.accuse("promises tell", f"a promise of {promise.ballot} hides the vote of ballot {newest}", peer)
        if promise.last is not None:
            said.left = True
        else:
            said.promised = max(said.promised, promise.ballot)

    def _proposes(self, peer: "Peer", propose: Propose) -> None:
        above = self.oracle.places.get(propose.parent)
        if above is None:
            return
        order = leading_order(above.id, above.electorate)
        if order[propose.ballot % len(order)] != peer.id:
            self.accuse("leader", f"proposes in ballot {propose.ballot}, which it does not lead", peer)
        key = peer.id, propose.parent, propose.ballot
        if not propose.carried and key not in self._proposed:
            self.holds(self.membership.proposes, peer, propose.value, above, peer=peer)
        if self._proposed.setdefault(key, propose.value.id) != propose.value.id:
            self.accuse("one value per ballot", f"proposes two values in ballot {propose.ballot}", peer)

    def _sends_blob(self, peer: "Peer", blob: Blob) -> None:
        if blob.content is BlobKind.PART and blob.peer == peer.id and blob.root is not None:
            made = self.oracle.made.get((peer.id, blob.root))
            if made is None or made.base != blob.parent:
                self.accuse("immutable contribution", "sends a part of a contribution that it did not journal", peer)


__all__ = ["Violation", "Watch"]
