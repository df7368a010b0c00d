"""The round: wires electorate, chain, synod, exchange, pace and sync into one peer's protocol state (DESIGN section 5).

Sans-IO. Every public method takes the local monotonic time in seconds and an event, and returns effects for the driver:
the service carries them out over a real network and disk, a simulator in virtual time. After each event everything that
has become possible is tried again (`_advance`), so no order of arrival is special and a repeated message is harmless.

A message under an older parent is answered by that parent's certificate; one under a parent not reached yet waits in
`_early`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from atoll.p2p.round import certify, lead
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain, check_value
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Discard, Effect, KeepParts, Note, Save, Send
from atoll.p2p.round.synod import Accepted, Acceptor
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Vote
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.manifest import MAX_CONTRIBUTORS, ExchangeSettings
from atoll.protocol.messages import (
    Blob,
    BlobKind,
    Cert,
    Message,
    Prepare,
    Promise,
    Propose,
    Ready,
    Start,
    Voted,
)

EARLY_PARENTS = 4
EARLY_EVENTS = 4096
ANSWER_PAUSE_S = 0.2


class Round(Core):
    """One peer's protocol, driven by events. Made by the service, or by a simulator."""

    def __init__(
        self, identity: Identity, chain: Chain, settings: ExchangeSettings, *, rounds: int, trains: bool, now: float
    ) -> None:
        super().__init__(identity, chain, settings, rounds=rounds, trains=trains, now=now)
        self._early: dict[Digest, list[Callable[[float], None]]] = {}
        self._answered: dict[tuple[PeerId, Digest], float] = {}
        self._asked: dict[PeerId, float] = {}
        self._nudge_at = now
        self._handlers: dict[type, Callable[[PeerId, Any, float], None]] = {
            Start: self._on_start,
            Prepare: self._on_prepare,
            Promise: self._on_promise,
            Propose: self._on_propose,
            Voted: self._on_vote,
        }

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
            certify.cast(self, Vote.cast(self.identity, FIRST_JOURNAL, ballot, value))
        return self._advance(now)

    def receive(self, now: float, peer: PeerId, message: Message) -> list[Effect]:
        """A message whose envelope holds, from `peer`."""
        self._know(peer)
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
            return self.shape.fits(dataclasses.replace(blob, part=self.wanted_part[blob.digest]))
        return self.chain.child(blob.parent or b"") is None and self.decree.exchange.accepts(peer, blob)

    def stored(self, now: float, peer: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None = None) -> list[Effect]:
        """Bytes that match their digest are on this peer's disk."""
        self.pace.heard(peer, now)
        if self.wants.arrived(blob.digest):
            self.decree.stored.add(blob.digest)
            self.step(self.wanted_part[blob.digest], blob.digest)
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

    def contributed(
        self, now: float, parent: Digest, root: Digest, tokens: int, leaves: tuple[Digest, ...]
    ) -> list[Effect]:
        """The trainer's contribution is encoded and stored. A second one under the same parent is ignored."""
        if parent == self.chain.tip.id and self.me not in self.decree.exchange.heads:
            self.decree.exchange.fix(root, tokens, leaves)
            self.decree.empty = False
            self.note_ready(now)
            self.broadcast_ready(now)
        return self._advance(now)

    def nothing_to_contribute(self, now: float, parent: Digest) -> list[Effect]:
        """The trainer was asked to freeze and had taken no step under `parent`."""
        if parent == self.chain.tip.id:
            self.decree.empty = True
            self.broadcast_ready(now)
        return self._advance(now)

    def reduced(
        self,
        now: float,
        parent: Digest,
        part: int,
        result: Digest | None,
        roots: tuple[Digest, ...] = (),
        bad: tuple[PeerId, ...] = (),
    ) -> list[Effect]:
        """A `Reduce` is done: `result` is stored, or the contributions of `bad` were unusable and are left out."""
        if parent == self.chain.tip.id:
            exchange = self.decree.exchange
            for peer in bad:
                exchange.exclude(peer, part)
                self.out.append(
                    Note("unusable_contribution", f"part {part} from {peer_name(peer)} is unusable and left out", peer)
                )
            if result is not None:
                blob = Blob(BlobKind.RESULT, result, self.shape.result_bytes[part], parent, part=part, roots=roots)
                self._hold(self.me, blob, None, now)
        return self._advance(now)

    def stepped(
        self, now: float, parent: Digest, part: int, result: Digest, chunks: tuple[Digest, ...] | None
    ) -> list[Effect]:
        """A `Step` is done; `chunks` is None if the result's bytes do not decode to finite numbers."""
        if parent == self.chain.tip.id:
            self.decree.stepping.discard((part, result))
            self.decree.stepped[part, result] = chunks
            if chunks is None:
                self.out.append(Note("unusable_result", f"the result of part {part} does not decode to finite numbers"))
        return self._advance(now)

    def committed(self, now: float, certificate: Certificate) -> list[Effect]:
        """A `Commit` is done: the certificate is logged and its state is in force."""
        self.chain.append(certificate)
        self.out.append(KeepParts(frozenset({self.chain.tip.id, *self._early})))
        old = self.chain.tip.round - self.settings.retain_rounds
        if old > 0:
            self.out.append(Discard(self.chain.certificates[old - 1].value.parent))
        self.inner_step = 0
        self.wants.forget(lambda _: False)
        self.decree = self.new_decree(now)
        self.broadcast_ready(now)
        early = self._early.pop(self.chain.tip.id, [])
        for event in early:
            event(now)
        return self._advance(now)

    def greet(self, now: float, peer: PeerId) -> list[Effect]:
        """A peer was found: introduce this one."""
        if peer != self.me:
            self._know(peer)
            self.out.append(Send(peer, self.ready()))
        return self._advance(now)

    def disconnected(self, now: float, peer: PeerId) -> list[Effect]:
        """The link to `peer` broke; whatever was under way to it is lost."""
        self.pace.disconnected(peer, now)
        self.decree.exchange.forget_sent(peer)
        return self._advance(now)

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye."""
        self.leaving = True
        self.broadcast_ready(now)
        return self.drain()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return self._advance(now)

    def deadline(self, now: float) -> float:
        """When `tick` is due if nothing else happens."""
        decree = self.decree
        times = [self.pace.next_change(now), self.wants.next_deadline(now), self._nudge_at]
        times += [
            at
            for at in (lead.closing_at(self, now), lead.turn_at(self, now), decree.exchange.grace_ends)
            if at is not None
        ]
        return min(at for at in times if at > now)

    # Messages.

    def _know(self, peer: PeerId) -> None:
        """Peers known are told how this one fares; invented identities cannot make that a burden."""
        if len(self.known) < MAX_CONTRIBUTORS:
            self.known.add(peer)

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
            self.out.append(Send(peer, Cert(child)))

    def _on_ready(self, peer: PeerId, ready: Ready, now: float) -> None:
        tip = self.chain.tip
        if self.pace.heard(peer, now, ready) and not ready.leaving:
            self.out.append(Send(peer, self.ready()))
        if ready.tip == tip.id:
            if ready.root is not None and ready.tokens > 0:
                if not self.decree.exchange.announce(peer, ready.root, ready.tokens):
                    self.out.append(
                        Note(
                            "two_contributions", f"{peer_name(peer)} announced two contributions under one parent", peer
                        )
                    )
                self.note_ready(now)
        elif self.chain.child(ready.tip) is not None:
            self._answer(peer, ready.tip, now)
        elif ready.round > tip.round:
            self._solicit(peer, now)

    def _solicit(self, peer: PeerId, now: float) -> None:
        """Make a peer that is ahead answer with the certificate that this one lacks."""
        if now >= self._asked.get(peer, 0.0) + ANSWER_PAUSE_S and self.decree.certificate is None:
            self._asked[peer] = now
            self.out.append(Send(peer, self.ready()))

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
            self.out.append(Note("bad_start", f"{peer_name(peer)}: {error}", peer))
            return
        self.heard_ballot(start.ballot, now)
        self.freeze()

    def _on_prepare(self, peer: PeerId, prepare: Prepare, now: float) -> None:
        decree, tip = self.decree, self.chain.tip
        if not self.votes or peer != electorates.leader(tip.id, tip.electorate, prepare.ballot):
            return
        acceptor = decree.acceptor.promise(prepare.ballot)
        if acceptor is None or (acceptor.accepted is not None and acceptor.accepted[0] >= prepare.ballot):
            return
        if acceptor != decree.acceptor:
            decree.acceptor = acceptor
            self.out.append(Save(tip.id, acceptor.promised, acceptor.accepted))
        self.heard_ballot(prepare.ballot, now)
        self.out.append(Send(peer, Promise(tip.id, prepare.ballot, FIRST_JOURNAL, acceptor.accepted)))

    def _on_promise(self, peer: PeerId, promise: Promise, now: float) -> None:
        decree = self.decree
        if decree.proposer is None or decree.proposer.ballot != promise.ballot or promise.journal != FIRST_JOURNAL:
            return
        if promise.accepted is not None:
            try:
                check_value(promise.accepted[1], decree.tip, self.shape.sizes)
            except MalformedError as error:
                self.out.append(Note("bad_promise", f"{peer_name(peer)}: {error}", peer))
                return
        decree.proposer.promises.setdefault(peer, promise.accepted)
        decree.progress_at = now

    def _on_propose(self, peer: PeerId, propose: Propose, now: float) -> None:
        decree, tip = self.decree, self.chain.tip
        if peer != electorates.leader(tip.id, tip.electorate, propose.ballot):
            return
        if decree.pending is not None and propose.ballot <= decree.pending.ballot:
            if decree.vote is not None and propose.ballot == decree.vote.ballot:
                self.out.append(Send(peer, Voted(decree.vote)))
            return
        try:
            check_value(propose.value, tip, self.shape.sizes)
        except MalformedError as error:
            self.out.append(Note("bad_proposal", f"{peer_name(peer)}: {error}", peer))
            return
        self.heard_ballot(propose.ballot, now)
        decree.pending = propose
        decree.values[propose.value.id] = propose.value

    def _on_vote(self, peer: PeerId, message: Voted, now: float) -> None:
        try:
            message.vote.check()
        except SignatureError as error:
            self.out.append(Note("bad_vote", f"{peer_name(peer)}: {error}", peer))
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
            self.out.append(Note("bad_certificate", f"{peer_name(peer)}: {error}", peer))
            return
        decree.certificate = certificate

    def _hold(self, peer: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None, now: float) -> None:
        decree = self.decree
        try:
            decree.exchange.hold(peer, blob, leaves)
        except MalformedError as error:
            self.out.append(Note("bad_leaves", f"{peer_name(peer)}: {error}", peer))
            return
        decree.progress_at = now
        if blob.content is BlobKind.RESULT:
            decree.stored.add(blob.digest)
            self.step(blob.part, blob.digest)

    # What has become possible.

    def _advance(self, now: float) -> list[Effect]:
        if not self.finished:
            certify.certify(self)
            if self.decree.certificate is not None:
                certify.apply(self, self.decree.certificate)
            else:
                lead.take_turn(self, now)
                self._exchange(now)
                lead.reassign(self, now)
                lead.propose(self, now)
                certify.vote(self)
                certify.certify(self)
                if self.decree.certificate is not None:
                    certify.apply(self, self.decree.certificate)
        self.out += self.wants.requests(now, lambda peer: self.pace.present(peer, now))
        if now >= self.pace.next_heartbeat:
            self.broadcast_ready(now)
        if now >= self._nudge_at:
            self._nudge(now)
        return self.drain()

    def _exchange(self, now: float) -> None:
        exchange = self.decree.exchange
        if exchange.start is None:
            return
        self.out += exchange.sends(lambda peer: self.pace.present(peer, now))
        self.out += exchange.reductions(now, lambda peer: self._may_contribute(peer, now))
        everybody = [p for p in self.audience() if self.pace.present(p, now)]
        for part, owner in enumerate(exchange.owners):
            if owner == self.me:
                self.out += exchange.spread(part, everybody)

    def _may_contribute(self, peer: PeerId, now: float) -> bool:
        """Whether an owner should go on waiting for this member's bytes."""
        if peer == self.me:
            return self.trains and not self.decree.empty and self.me not in self.decree.exchange.heads
        ready = self.pace.ready(peer, now)
        return (
            ready is not None
            and (ready.trains or peer in self.decree.exchange.heads)
            and ready.round <= self.chain.tip.round
        )

    # Sending.

    def _nudge(self, now: float) -> None:
        """Messages may be lost: what a ballot waits for is said again."""
        self._nudge_at = now + 2 * self.settings.heartbeat_s
        decree = self.decree
        if decree.certificate is not None or self.finished:
            return
        if decree.proposer is not None and decree.exchange.start is not None:
            self.to_round(decree.exchange.start)
            if decree.proposer.value is not None and decree.pending is not None:
                self.to_voters(decree.pending)
            elif decree.proposer.ballot > 0:
                self.to_voters(Prepare(decree.tip.id, decree.proposer.ballot))
        if decree.vote is not None:
            self.to_voters(Voted(decree.vote))
