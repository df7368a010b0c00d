"""The round: wires electorate, chain, synod, exchange, pace and sync into one peer's protocol state (DESIGN section 5).

Sans-IO. Every public method takes the local monotonic time in seconds and an event, and returns effects for the driver:
the service carries them out over a real network and disk, a simulator in virtual time. After each event everything that
has become possible is tried again (`_advance`), so no order of arrival is special and a repeated message is harmless.

Messages under an older parent are answered by its certificate, those
under a parent not reached yet wait in `_early`.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain, check_value
from atoll.p2p.round.decree import Decree, result_digests
from atoll.p2p.round.effects import Commit, Discard, Effect, Freeze, Note, Save, Send, Step
from atoll.p2p.round.exchange import Exchange, Shape, assign, run_lengths
from atoll.p2p.round.pace import Pace
from atoll.p2p.round.sync import Wants
from atoll.p2p.round.synod import Accepted, Acceptor, Proposer
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Value, Vote
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.manifest import ExchangeSettings
from atoll.protocol.messages import (
    Blob, BlobKind, Cert, Message, Prepare, Promise, Propose, Ready, Start, Voted,
)

EARLY_PARENTS = 4
EARLY_EVENTS = 4096
ANSWER_PAUSE_S = 0.2


class Phase(enum.StrEnum):
    TRAIN = "TRAIN"
    EXCHANGE = "EXCHANGE"
    VOTED = "VOTED"
    APPLY = "APPLY"
    SYNC = "SYNC"
    FINISHED = "FINISHED"


class Round:
    def __init__(
        self, identity: Identity, chain: Chain, settings: ExchangeSettings, *, rounds: int, trains: bool, now: float,
        shape: Shape | None = None,
    ) -> None:
        self.identity, self.me, self.chain, self.settings, self.rounds = identity, identity.peer_id, chain, settings, rounds
        self.trains, self.leaving, self.inner_step, self.rate_bps = trains, False, 0, 0
        self.shape = shape or Shape(chain.layout, settings)
        self.pace, self.wants = Pace(settings, now), Wants(settings.gone_after_s)
        self.known: set[PeerId] = set()
        self.decree = self._new_decree(now)
        self._out: list[Effect] = []
        self._early: dict[Digest, list[Callable[[float], None]]] = {}
        self._answered: dict[tuple[PeerId, Digest], float] = {}
        self._asked: dict[PeerId, float] = {}
        self._nudge_at = now
        self._handlers: dict[type, Callable[[PeerId, Any, float], None]] = {
            Start: self._on_start, Prepare: self._on_prepare, Promise: self._on_promise, Propose: self._on_propose, Voted: self._on_vote,
        }

    # What others may look at.

    @property
    def phase(self) -> Phase:
        decree = self.decree
        if self.finished:
            return Phase.FINISHED
        if decree.certificate is not None:
            return Phase.APPLY if decree.committing else Phase.SYNC
        if decree.vote is not None:
            return Phase.VOTED
        return Phase.EXCHANGE if decree.exchange.start is not None else Phase.TRAIN

    @property
    def finished(self) -> bool:
        return 0 < self.rounds <= self.chain.tip.round

    @property
    def leader(self) -> PeerId:
        """Who leads the highest ballot heard of under the current parent (ballot 0 before any)."""
        return electorates.leader(self.chain.tip.id, self.chain.tip.electorate, max(self.decree.ballot, 0))

    @property
    def votes(self) -> bool:
        return self.me in electorates.peers(self.chain.tip.electorate)

    # Events.

    def restore(self, promised: int, accepted: Accepted | None, now: float) -> list[Effect]:
        """Take up what this peer had promised and accepted under the current parent before it was restarted."""
        decree = self.decree
        decree.acceptor = Acceptor(promised, accepted)
        decree.ballot = max(decree.ballot, promised if promised or accepted else -1)
        if accepted is not None:
            ballot, value = accepted
            decree.values[value.id] = value
            decree.pending = Propose(ballot, value)
            self._cast(Vote.cast(self.identity, FIRST_JOURNAL, ballot, value))
        return self._advance(now)

    def receive(self, now: float, peer: PeerId, message: Message) -> list[Effect]:
        """A message whose envelope holds, from `peer`."""
        self.known.add(peer)
        if isinstance(message, Ready):
            self._on_ready(peer, message, now)
        elif isinstance(message, Cert):
            self.pace.heard(peer, now)
            self._on_cert(peer, message.certificate)
        else:
            self.pace.heard(peer, now)
            handler = self._handlers.get(type(message))
            parent = getattr(message, "parent", None)
            if handler is not None and isinstance(parent, bytes):
                self._under(parent, peer, now, lambda at: handler(peer, message, at))
        return self._advance(now)

    def accepts(self, peer: PeerId, blob: Blob) -> bool:
        """Whether the payload behind this header may be received; asked before any of it is read."""
        if self.wants.wanted(blob.digest):
            return self.shape.fits(dataclasses.replace(blob, part=self._wanted_part[blob.digest]))
        return self.chain.child(blob.parent or b"") is None and self.decree.exchange.accepts(peer, blob)

    def stored(self, now: float, peer: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None = None) -> list[Effect]:
        """Bytes that match their digest are on this peer's disk."""
        self.pace.heard(peer, now)
        if self.wants.arrived(blob.digest):
            self.decree.stored.add(blob.digest)
            self._step(self._wanted_part[blob.digest], blob.digest)
        elif blob.parent is not None:
            self._under(blob.parent, peer, now, lambda at: self._hold(peer, blob, leaves, at))
        return self._advance(now)

    def receiving(self, now: float, peer: PeerId, digest: Digest) -> None:
        """More bytes of a blob have come in: its sender lives."""
        self.pace.heard(peer, now)
        self.wants.progress(digest, peer, now)

    def missing(self, now: float, peer: PeerId, digest: Digest) -> list[Effect]:
        """`peer` does not have a blob that this peer asked it for."""
        self.pace.heard(peer, now)
        self.wants.missing(digest, peer)
        return self._advance(now)

    def contributed(self, now: float, parent: Digest, root: Digest, tokens: int, leaves: tuple[Digest, ...]) -> list[Effect]:
        """The trainer's contribution is encoded and stored. A second one under the same parent is ignored."""
        if parent == self.chain.tip.id and self.me not in self.decree.exchange.heads:
            self.decree.exchange.fix(root, tokens, leaves)
            self.decree.empty = False
            self._note_ready(now)
            self._broadcast_ready(now)
        return self._advance(now)

    def nothing_to_contribute(self, now: float, parent: Digest) -> list[Effect]:
        """The trainer was asked to freeze and had taken no step under `parent`."""
        if parent == self.chain.tip.id:
            self.decree.empty = True
            self._broadcast_ready(now)
        return self._advance(now)

    def reduced(
        self, now: float, parent: Digest, part: int, result: Digest | None, roots: tuple[Digest, ...] = (), bad: tuple[PeerId, ...] = (),
    ) -> list[Effect]:
        """A `Reduce` is done: `result` is stored, or the contributions of `bad` were unusable and are left out."""
        if parent == self.chain.tip.id:
            exchange = self.decree.exchange
            for peer in bad:
                exchange.exclude(peer, part)
                self._out.append(Note("unusable_contribution", f"part {part} from {peer_name(peer)} is unusable and left out", peer))
            if result is not None:
                blob = Blob(BlobKind.RESULT, result, self.shape.result_bytes[part], parent, part=part, roots=roots)
                self._hold(self.me, blob, None, now)
        return self._advance(now)

    def stepped(self, now: float, parent: Digest, part: int, result: Digest, chunks: tuple[Digest, ...] | None) -> list[Effect]:
        """A `Step` is done; `chunks` is None if the result's bytes do not decode to finite numbers."""
        if parent == self.chain.tip.id:
            self.decree.stepping.discard((part, result))
            self.decree.stepped[part, result] = chunks
            if chunks is None:
                self._out.append(Note("unusable_result", f"the result of part {part} does not decode to finite numbers"))
        return self._advance(now)

    def committed(self, now: float, certificate: Certificate) -> list[Effect]:
        """A `Commit` is done: the certificate is logged and its state is in force."""
        parent = certificate.value.parent
        self.chain.append(certificate)
        self._out += [Discard(BlobKind.PART, parent)]
        old = self.chain.tip.round - self.settings.retain_rounds
        if old > 0:
            self._out.append(Discard(BlobKind.RESULT, self.chain.certificates[old - 1].value.parent))
        self.inner_step = 0
        self.wants.forget(lambda digest: False)
        self.decree = self._new_decree(now)
        self._broadcast_ready(now)
        early = self._early.pop(self.chain.tip.id, [])
        for event in early:
            event(now)
        return self._advance(now)

    def greet(self, now: float, peer: PeerId) -> list[Effect]:
        """A peer was found: introduce this one."""
        if peer != self.me:
            self.known.add(peer)
            self._out.append(Send(peer, self._ready()))
        return self._advance(now)

    def disconnected(self, now: float, peer: PeerId) -> list[Effect]:
        """The link to `peer` broke; whatever was under way to it is lost."""
        self.pace.disconnected(peer, now)
        self.decree.exchange.forget_sent(peer)
        return self._advance(now)

    def training(self, now: float, trains: bool) -> list[Effect]:
        """A trainer has started or gone for good."""
        if trains != self.trains:
            self.trains = trains
            self._broadcast_ready(now)
        return self._advance(now)

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye."""
        self.leaving = True
        self._broadcast_ready(now)
        return self._drain()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return self._advance(now)

    def deadline(self, now: float) -> float:
        """When `tick` is due if nothing else happens."""
        decree = self.decree
        times = [self.pace.next_change(now), self.wants.next_deadline(now), self._nudge_at]
        times += [at for at in (self._closing_at(now), self._turn_at(now), decree.exchange.grace_ends) if at is not None]
        return min(at for at in times if at > now)

    # Messages.

    def _under(self, parent: Digest, peer: PeerId, now: float, event: Callable[[float], None]) -> None:
        """Run an event under its parent: now, later, or never, answering with the parent's certificate."""
        if parent == self.chain.tip.id:
            event(now)
        elif self.chain.child(parent) is not None:
            self._answer(peer, parent, now)
        elif parent in self._early or len(self._early) < EARLY_PARENTS:
            events = self._early.setdefault(parent, [])
            if len(events) < EARLY_EVENTS:
                events.append(event)
        else:
            self._early.pop(next(iter(self._early)))
            self._early[parent] = [event]

    def _answer(self, peer: PeerId, parent: Digest, now: float) -> None:
        """CERT answers any message whose parent has a child whose state is held here."""
        child = self.chain.child(parent)
        if child is not None and now >= self._answered.get((peer, parent), 0.0) + ANSWER_PAUSE_S:
            if len(self._answered) > EARLY_EVENTS:
                self._answered.clear()
            self._answered[peer, parent] = now
            self._out.append(Send(peer, Cert(child)))

    def _on_ready(self, peer: PeerId, ready: Ready, now: float) -> None:
        tip = self.chain.tip
        if self.pace.heard(peer, now, ready) and not ready.leaving:
            self._out.append(Send(peer, self._ready()))
        if ready.tip == tip.id:
            if ready.root is not None and ready.tokens > 0:
                if not self.decree.exchange.announce(peer, ready.root, ready.tokens):
                    self._out.append(Note("two_contributions", f"{peer_name(peer)} announced two contributions under one parent", peer))
                self._note_ready(now)
        elif self.chain.child(ready.tip) is not None:
            self._answer(peer, ready.tip, now)
        elif ready.round > tip.round:
            self._solicit(peer, now)

    def _solicit(self, peer: PeerId, now: float) -> None:
        """Make a peer that is ahead answer with the certificate that this one lacks."""
        if now >= self._asked.get(peer, 0.0) + ANSWER_PAUSE_S and self.decree.certificate is None:
            self._asked[peer] = now
            self._out.append(Send(peer, self._ready()))

    def _on_start(self, peer: PeerId, start: Start, now: float) -> None:
        decree, tip = self.decree, self.chain.tip
        current = decree.exchange.start
        if peer != electorates.leader(tip.id, tip.electorate, start.ballot) or start.ballot < decree.acceptor.promised:
            return
        if current is not None and (start.ballot, start.attempt) <= (current.ballot, current.attempt):
            return
        try:
            decree.exchange.begin(start, now)
        except MalformedError as error:
            self._out.append(Note("bad_start", f"{peer_name(peer)}: {error}", peer))
            return
        self._heard_ballot(start.ballot, now)
        self._freeze()

    def _freeze(self) -> None:
        decree = self.decree
        if self.trains and not decree.frozen and self.me not in decree.exchange.heads:
            decree.frozen = True
            self._out.append(Freeze(decree.tip.id))

    def _heard_ballot(self, ballot: int, now: float) -> None:
        decree = self.decree
        if ballot > decree.ballot:
            previous = electorates.leader(decree.tip.id, decree.tip.electorate, max(decree.ballot, 0))
            if decree.ballot >= 0 and (previous == self.me or self.pace.present(previous, now)):
                decree.delta_factor *= 1.5
            decree.ballot = ballot
            if decree.proposer is not None and decree.proposer.ballot < ballot:
                decree.proposer = None
        decree.progress_at = now

    def _on_prepare(self, peer: PeerId, prepare: Prepare, now: float) -> None:
        decree, tip = self.decree, self.chain.tip
        if not self.votes or peer != electorates.leader(tip.id, tip.electorate, prepare.ballot):
            return
        acceptor = decree.acceptor.promise(prepare.ballot)
        if acceptor is None or (acceptor.accepted is not None and acceptor.accepted[0] >= prepare.ballot):
            return
        if acceptor != decree.acceptor:
            decree.acceptor = acceptor
            self._out.append(Save(tip.id, acceptor.promised, acceptor.accepted))
        self._heard_ballot(prepare.ballot, now)
        self._out.append(Send(peer, Promise(tip.id, prepare.ballot, FIRST_JOURNAL, acceptor.accepted)))

    def _on_promise(self, peer: PeerId, promise: Promise, now: float) -> None:
        decree = self.decree
        if decree.proposer is None or decree.proposer.ballot != promise.ballot or promise.journal != FIRST_JOURNAL:
            return
        if promise.accepted is not None:
            try:
                check_value(promise.accepted[1], decree.tip, self.shape.sizes)
            except MalformedError as error:
                self._out.append(Note("bad_promise", f"{peer_name(peer)}: {error}", peer))
                return
        decree.proposer.promises.setdefault(peer, promise.accepted)
        decree.progress_at = now

    def _on_propose(self, peer: PeerId, propose: Propose, now: float) -> None:
        decree, tip = self.decree, self.chain.tip
        if peer != electorates.leader(tip.id, tip.electorate, propose.ballot):
            return
        if decree.pending is not None and propose.ballot <= decree.pending.ballot:
            if decree.vote is not None and propose.ballot == decree.vote.ballot:
                self._out.append(Send(peer, Voted(decree.vote)))
            return
        try:
            check_value(propose.value, tip, self.shape.sizes)
        except MalformedError as error:
            self._out.append(Note("bad_proposal", f"{peer_name(peer)}: {error}", peer))
            return
        self._heard_ballot(propose.ballot, now)
        decree.pending = propose
        decree.values[propose.value.id] = propose.value

    def _on_vote(self, peer: PeerId, message: Voted, now: float) -> None:
        try:
            message.vote.check()
        except SignatureError as error:
            self._out.append(Note("bad_vote", f"{peer_name(peer)}: {error}", peer))
            return
        if self.decree.tally.add(message.vote, self.chain.tip.electorate):
            self.decree.progress_at = now

    def _on_cert(self, peer: PeerId, certificate: Certificate) -> None:
        decree = self.decree
        if certificate.value.parent != self.chain.tip.id or decree.certificate is not None:
            return
        try:
            self.chain.check(certificate)
        except (MalformedError, SignatureError) as error:
            self._out.append(Note("bad_certificate", f"{peer_name(peer)}: {error}", peer))
            return
        decree.certificate = certificate

    def _hold(self, peer: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None, now: float) -> None:
        decree = self.decree
        try:
            decree.exchange.hold(peer, blob, leaves)
        except MalformedError as error:
            self._out.append(Note("bad_leaves", f"{peer_name(peer)}: {error}", peer))
            return
        decree.progress_at = now
        if blob.content is BlobKind.RESULT:
            decree.stored.add(blob.digest)
            self._step(blob.part, blob.digest)

    def _step(self, part: int, result: Digest) -> None:
        decree = self.decree
        if (part, result) not in decree.stepped and (part, result) not in decree.stepping:
            decree.stepping.add((part, result))
            self._out.append(Step(decree.tip.id, part, result))

    # What has become possible.

    def _advance(self, now: float) -> list[Effect]:
        if not self.finished:
            self._certify()
            if self.decree.certificate is not None:
                self._apply(self.decree.certificate)
            else:
                self._take_turn(now)
                self._exchange(now)
                self._reassign(now)
                self._propose(now)
                self._vote()
                self._certify()
                if self.decree.certificate is not None:
                    self._apply(self.decree.certificate)
        self._out += self.wants.requests(now, lambda peer: self.pace.present(peer, now))
        if now >= self.pace.next_heartbeat:
            self._broadcast_ready(now)
        if now >= self._nudge_at:
            self._nudge(now)
        return self._drain()

    def _drain(self) -> list[Effect]:
        out, self._out = self._out, []
        return out

    def _closing_at(self, now: float) -> float | None:
        """When the round may be closed: everybody worth waiting for is READY, or grace has passed since the first."""
        decree, tip = self.decree, self.chain.tip
        if decree.first_ready_at is None:
            return None
        heads, waiting = decree.exchange.heads, False
        for peer, presence in self.pace.peers.items():
            ready = presence.ready
            if ready is not None and ready.trains and peer not in heads and self.pace.present(peer, now):
                waiting = waiting or ready.round >= tip.round - 1
        waiting = waiting or (self.trains and not decree.empty and self.me not in heads)
        waiting = waiting or any(p != self.me and p not in self.pace.peers and self.pace.awaited(p, now) for p in electorates.peers(tip.electorate))
        earliest = decree.learned_at + self.settings.min_round_s
        return max(earliest, decree.first_ready_at + self.settings.grace_s if waiting else decree.first_ready_at)

    def _turn_at(self, now: float) -> float | None:
        """When this voter opens its next ballot: at once if no living leader comes before it, else after delta for each."""
        decree, tip = self.decree, self.chain.tip
        closing = self._closing_at(now)
        if closing is None or decree.certificate is not None or self.finished:
            return None
        used = decree.acceptor.promised > 0 or decree.acceptor.accepted is not None
        at_least = max(decree.ballot, decree.acceptor.promised if used else -1) + 1
        turn = electorates.next_turn(tip.id, tip.electorate, self.me, at_least)
        if turn is None or (decree.proposer is not None and decree.proposer.ballot == decree.ballot):
            return None
        before = {electorates.leader(tip.id, tip.electorate, ballot) for ballot in range(max(decree.ballot, 0), turn)} - {self.me}
        living = sum(1 for peer in before if self.pace.awaited(peer, now))
        base = max(closing, decree.progress_at)
        if decree.ballot >= 0 and decree.pending is None and self.pace.awaited(self.leader, now):
            base = max(base, decree.exchange.grace_ends)  # its leader lives and may still be waiting for a slow member
        return base + self.settings.ballot_timeout_s * decree.delta_factor * living

    def _take_turn(self, now: float) -> None:
        at = self._turn_at(now)
        if at is None or now < at:
            return
        decree, tip = self.decree, self.chain.tip
        used = decree.acceptor.promised > 0 or decree.acceptor.accepted is not None
        ballot = electorates.next_turn(tip.id, tip.electorate, self.me, max(decree.ballot, decree.acceptor.promised if used else -1) + 1)
        members = sorted(peer for peer in decree.exchange.heads if peer == self.me or self.pace.present(peer, now))
        late = [p for p in self.pace.alive(now) if (r := self.pace.ready(p, now)) and r.tip == tip.id and r.trains]
        late += [self.me] if self.trains and not decree.empty else []
        if ballot is None or not members:
            return
        if ballot > 0:
            acceptor = decree.acceptor.promise(ballot)
            if acceptor is None:
                return
            decree.acceptor = acceptor
            self._out.append(Save(tip.id, acceptor.promised, acceptor.accepted))
        self._heard_ballot(ballot, now)
        decree.proposer = Proposer(ballot)
        decree.proposer.promises[self.me] = decree.acceptor.accepted
        rates = {peer: self._rate(peer, now) for peer in members}
        self._start(ballot, tuple(sorted({*members, *late})), assign(self.shape.parts, rates), now)
        if ballot > 0:
            self._to_voters(Prepare(tip.id, ballot))

    def _rate(self, peer: PeerId, now: float) -> int:
        ready = self.pace.ready(peer, now)
        return self.rate_bps if peer == self.me else ready.rate_bps if ready is not None else 0

    def _start(self, ballot: int, members: tuple[PeerId, ...], owners: tuple[PeerId, ...], now: float) -> None:
        decree = self.decree
        grace_ms = int(self.settings.grace_s * 1000)
        start = Start(decree.tip.id, ballot, int(now * 1000), members, run_lengths(owners, members), grace_ms)
        decree.exchange.begin(start, now)
        decree.progress_at = now
        self._freeze()
        self._to_round(start)

    def _exchange(self, now: float) -> None:
        exchange = self.decree.exchange
        if exchange.start is None:
            return
        self._out += exchange.sends(lambda peer: self.pace.present(peer, now))
        self._out += exchange.reductions(now, lambda peer: self._may_contribute(peer, now))
        everybody = [p for p in self._audience() if self.pace.present(p, now)]
        for part, owner in enumerate(exchange.owners):
            if owner == self.me:
                self._out += exchange.spread(part, everybody)

    def _may_contribute(self, peer: PeerId, now: float) -> bool:
        """Whether an owner should go on waiting for this member's bytes."""
        if peer == self.me:
            return self.trains and not self.decree.empty and self.me not in self.decree.exchange.heads
        ready = self.pace.ready(peer, now)
        return ready is not None and (ready.trains or peer in self.decree.exchange.heads) and ready.round <= self.chain.tip.round

    def _reassign(self, now: float) -> None:
        """As leader, move the parts of owners that went away, or that are long past grace, to others."""
        decree, exchange = self.decree, self.decree.exchange
        proposer, start = decree.proposer, exchange.start
        if proposer is None or start is None or proposer.value is not None or start.ballot != proposer.ballot:
            return
        overdue = now >= exchange.grace_ends + self.settings.ballot_timeout_s
        lost = {o for o in exchange.late_owners(decree.usable) if o != self.me and (overdue or not self.pace.present(o, now))}
        if not lost:
            return
        members = tuple(p for p in start.members if p not in lost and (p == self.me or self.pace.present(p, now)))
        able = [p for p in members if p in exchange.heads]
        if not able:
            return
        moved = assign(sum(1 for o in exchange.owners if o in lost), {p: self._rate(p, now) for p in able})
        spare = iter(moved)
        owners = tuple(next(spare) if owner in lost else owner for owner in exchange.owners)
        self._out.append(Note("owner_gone", f"{len(moved)} parts of {len(lost)} peers that went away are reduced by others"))
        self._start(start.ballot, tuple(sorted({*members, *owners})), owners, now)

    def _propose(self, now: float) -> None:
        decree = self.decree
        proposer = decree.proposer
        if proposer is None or not proposer.may_propose(decree.tip.electorate):
            return
        bound = proposer.bound()
        value = bound or decree.own_value()
        if value is None:
            return
        decree.values[value.id] = value
        propose = decree.pending = Propose(proposer.ballot, value)
        self._vote()
        if bound is not None or (decree.vote is not None and decree.vote.ballot == proposer.ballot):
            proposer.value = value
            decree.progress_at = now
            self._to_voters(propose)

    def _vote(self) -> None:
        """Rule 3: vote as soon as the ballot is not below the promise, every byte is held and the state comes out alike."""
        decree, pending = self.decree, self.decree.pending
        if pending is None or not self.votes or (decree.vote is not None and decree.vote.ballot >= pending.ballot):
            return
        value, tip = pending.value, decree.tip
        if pending.ballot < decree.acceptor.promised:
            return
        self._fetch(value)
        agrees = decree.agrees(value)
        if agrees is None:
            return
        acceptor = decree.acceptor.accept(pending.ballot, value)
        if not agrees or acceptor is None or decree.contradicts_announcements(value):
            decree.pending = None
            self._out.append(Note("proposal_refused", f"this peer does not arrive at the state proposed in ballot {pending.ballot}"))
            return
        decree.acceptor = acceptor
        self._out.append(Save(tip.id, acceptor.promised, acceptor.accepted, result_digests(value.parts)))
        self._cast(Vote.cast(self.identity, FIRST_JOURNAL, pending.ballot, value))

    def _cast(self, vote: Vote) -> None:
        self.decree.vote = vote
        self.decree.tally.add(vote, self.chain.tip.electorate)
        self._to_voters(Voted(vote))

    def _certify(self) -> None:
        decree = self.decree
        if decree.certificate is None:
            decree.certificate = decree.tally.certificate(decree.values, decree.tip.electorate)
            if decree.certificate is not None and (decree.proposer is not None or self.leader == self.me):
                for peer in sorted(self.known):
                    self._out.append(Send(peer, Cert(decree.certificate)))

    def _apply(self, certificate: Certificate) -> None:
        decree, value = self.decree, certificate.value
        if decree.committing:
            return
        self._fetch(value)
        agrees = decree.agrees(value)
        if agrees:
            decree.committing = True
            self._out.append(Commit(certificate))
        elif agrees is False:
            decree.committing = True
            self._out.append(Note("nondeterministic_cpu", "this machine's arithmetic does not arrive at the certified state"))

    def _fetch(self, value: Value) -> None:
        """Step what is stored of a value's results and ask for the rest: owners first, then whoever voted, then anybody."""
        decree, exchange = self.decree, self.decree.exchange
        for part, result in decree.unstepped(value):
            if result in decree.stored:
                self._step(part, result)
            elif (part, result) not in decree.stepping:
                owner = exchange.owners[part : part + 1]
                voters = [vote.peer for vote in (decree.certificate.votes if decree.certificate else ())]
                holders = dict.fromkeys([*owner, self.leader, *voters, *sorted(self.known)])
                self.wants.need(BlobKind.RESULT, result, [p for p in holders if p != self.me])
                self._wanted_part[result] = part

    # Sending.

    def _ready(self) -> Ready:
        tip, head = self.chain.tip, self.decree.exchange.heads.get(self.me)
        trains = self.trains and not self.decree.empty
        return Ready(tip.id, tip.round, str(self.phase), self.inner_step, trains, self.leaving, self.rate_bps, FIRST_JOURNAL,
                     head.root if head else None, head.tokens if head else 0)

    def _broadcast_ready(self, now: float) -> None:
        self.pace.next_heartbeat = now + self.settings.heartbeat_s
        ready = self._ready()
        self._out += [Send(peer, ready) for peer in sorted(self.known) if peer != self.me]

    def _note_ready(self, now: float) -> None:
        if self.decree.first_ready_at is None:
            self.decree.first_ready_at = now

    def _nudge(self, now: float) -> None:
        """Messages may be lost: what a ballot waits for is said again."""
        self._nudge_at = now + 2 * self.settings.heartbeat_s
        decree = self.decree
        if decree.certificate is not None or self.finished:
            return
        if decree.proposer is not None and decree.exchange.start is not None:
            self._to_round(decree.exchange.start)
            if decree.proposer.value is not None and decree.pending is not None:
                self._to_voters(decree.pending)
            elif decree.proposer.ballot > 0:
                self._to_voters(Prepare(decree.tip.id, decree.proposer.ballot))
        if decree.vote is not None:
            self._to_voters(Voted(decree.vote))

    def _audience(self) -> list[PeerId]:
        """Voters and members of the round under way, without this peer."""
        start = self.decree.exchange.start
        members = start.members if start is not None else ()
        return sorted({*members, *electorates.peers(self.chain.tip.electorate)} - {self.me})

    def _to_round(self, message: Message) -> None:
        self._out += [Send(peer, message) for peer in self._audience()]

    def _to_voters(self, message: Message) -> None:
        self._out += [Send(peer, message) for peer in electorates.peers(self.chain.tip.electorate) if peer != self.me]

    def _new_decree(self, now: float) -> Decree:
        tip = self.chain.tip
        self._wanted_part: dict[Digest, int] = {}
        decree = Decree(tip, Exchange(tip.id, self.me, self.shape), now, progress_at=now)
        for peer, presence in self.pace.peers.items():
            ready = presence.ready
            if ready is not None and ready.tip == tip.id and ready.root is not None and ready.tokens > 0:
                decree.exchange.announce(peer, ready.root, ready.tokens)
                decree.first_ready_at = now
        return decree
