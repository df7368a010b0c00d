"""The round: wires electorate, chain, lineage, synod, exchange, pace and sync into one peer's protocol state (DESIGN
section 5). What a message does in which state stands in `table`.

Sans-IO. Every public method takes the local monotonic time in seconds and an event, and returns effects for the driver:
the service carries them out over a real network and disk, a simulator in virtual time. After each event everything that
has become possible is tried again (`_advance`), so no order of arrival is special and a repeated message is harmless.

A message under an older parent is answered by the certificate behind it; one under a parent not reached yet waits in
`_early`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from atoll.p2p.round import certify, follow, hear, lastballot, lead
from atoll.p2p.round.chain import Chain
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Discard, Effect, KeepParts, Note, Prune, Send
from atoll.p2p.round.exchange import Head
from atoll.p2p.round.synod import Acceptor
from atoll.p2p.round.table import TABLE, Do
from atoll.protocol.certificate import Certificate
from atoll.protocol.digest import Digest
from atoll.protocol.fork import Fork
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.manifest import MAX_CONTRIBUTORS, ExchangeSettings
from atoll.protocol.messages import (
    Blob,
    BlobKind,
    Cert,
    Get,
    Message,
    Prepare,
    Promise,
    Propose,
    Ready,
    Voted,
)

EARLY_PARENTS = 4
EARLY_EVENTS = 4096
KEPT_BASES = 2  # rounds whose contributions are kept on disk, the current one included

ACTIONS: Mapping[Do, Callable[[Core, PeerId, Any, float], None]] = {
    Do.BEGIN: hear.start,
    Do.PROMISE: hear.prepare,
    Do.LAST: hear.last,
    Do.GATHER: hear.promise,
    Do.PEND: hear.propose,
    Do.COUNT: hear.vote,
}


class Round(Core):
    """One peer's protocol, driven by events. Made by the service, or by a simulator."""

    def __init__(
        self, identity: Identity, chain: Chain, settings: ExchangeSettings, *, journal: bytes,
        memory: Mapping[Digest, Acceptor], stored: Iterable[Digest] = (), rounds: int, trains: bool, now: float,
    ) -> None:
        """`memory`: what the journal holds, by parent; `stored`: results that are on disk."""
        super().__init__(
            identity, chain, settings, journal=journal, memory=memory, stored=stored, rounds=rounds, trains=trains,
            now=now,
        )
        self._early: dict[Digest, list[Callable[[float], None]]] = {}
        self._nudge_at = now
        for link in chain.lineage(chain.tip.id):
            if isinstance(link, Fork):
                lastballot.note_fork(self, link)
        self.vote_again()

    # Events.

    def receive(self, now: float, peer: PeerId, message: Message) -> list[Effect]:
        """A message whose envelope holds, from `peer`."""
        self.pace.notice(now)
        if peer in self.banned:
            return self._from_banned(now, peer, message)
        self._know(peer)
        if isinstance(message, Ready):
            if not hear.ready(self, peer, message, now) and now < self.pace.next_heartbeat:
                return self.drain()  # a heartbeat that says nothing new makes nothing possible
        else:
            self.pace.heard(peer, now)
            if isinstance(message, Cert):
                hear.cert(self, peer, message.link)
            elif isinstance(message, Get):
                hear.get(self, peer, message, now)
            else:
                self._dispatch(peer, message, now)
        return self._advance(now)

    def _heard(self, peer: PeerId, now: float) -> None:
        if peer in self.banned:
            self.banned[peer] = now
        else:
            self.pace.heard(peer, now)

    def _from_banned(self, now: float, peer: PeerId, message: Message) -> list[Effect]:
        """What a peer that equivocated says is not believed; what proves itself, certificates and bytes, is."""
        self.banned[peer] = now
        if isinstance(message, Cert):
            hear.cert(self, peer, message.link)
        elif isinstance(message, Get):
            hear.get(self, peer, message, now)
        elif isinstance(message, Ready) and message.tip != self.tip.id:
            hear.elsewhere(self, peer, message, now)
        return self._advance(now)

    def _dispatch(self, peer: PeerId, message: Message, now: float) -> None:
        parent = getattr(message, "parent", None)
        if not isinstance(parent, bytes):
            return

        def act(at: float) -> None:
            action = TABLE[self.phase].get(type(message), Do.IGNORE)
            if action is not Do.IGNORE:
                ACTIONS[action](self, peer, message, at)

        if isinstance(message, Voted) and message.vote.certificate == self.tip.id != parent:
            hear.late_vote(self, peer, message)
        else:
            heavy = isinstance(message, (Propose, Promise))
            self._under(parent, self.tip.id, peer, now, act, heavy=heavy)

    def accepts(self, peer: PeerId, blob: Blob) -> bool:
        """Whether the payload behind this header may be received; asked before any of it is read."""
        want = self.wants.wanted(blob.digest)
        if want is not None:
            return blob.content is want.content and self.shape.fits(dataclasses.replace(blob, part=want.part))
        known = blob.parent is not None and self.chain.buried(blob.parent)
        return not known and peer not in self.banned and self.decree.exchange.accepts(peer, blob)

    def base_of(self, blob: Blob) -> Digest:
        """Which round's bytes these are."""
        want = self.wants.wanted(blob.digest)
        return want.base if want is not None else blob.parent or self.tip.base

    def stored(
        self, now: float, peer: PeerId, blob: Blob, leaves: tuple[Digest, ...] | None = None
    ) -> list[Effect]:
        """Bytes that match their digest are on this peer's disk."""
        self._heard(peer, now)
        want = self.wants.arrived(blob.digest)
        if want is not None:
            self.results_held[blob.digest] = want.base
            self.gathered = False
            if want.base == self.tip.base:
                self.step(want.part, blob.digest)
            if blob.parent == self.tip.base and blob.part == want.part:  # the owner's own word, not only an answer
                hear.hold(self, peer, blob, leaves, now)
        elif blob.parent is not None:
            self._under(blob.parent, self.tip.base, peer, now, lambda at: hear.hold(self, peer, blob, leaves, at))
        return self._advance(now)

    def receiving(self, now: float, peer: PeerId, digest: Digest) -> None:
        """More bytes of a blob have come in: its sender lives."""
        self._heard(peer, now)
        self.wants.progress(digest, peer, now)

    def missing(self, now: float, peer: PeerId, digest: Digest) -> list[Effect]:
        """`peer` does not have a blob that this peer asked it for."""
        self._heard(peer, now)
        self.wants.missing(digest, peer)
        return self._advance(now)

    def contributed(
        self, now: float, base: Digest, root: Digest, tokens: int, leaves: tuple[Digest, ...], journal: bytes = b""
    ) -> list[Effect]:
        """The trainer's contribution is encoded and journaled. A second one under the same base is ignored.

        `journal` names the journal that the contribution was made under, where that is not the present one.
        """
        if base == self.tip.base and self.me not in self.decree.exchange.heads:
            self.decree.exchange.fix(Head(root, tokens, journal or self.journal), leaves)
            self.decree.empty = False
            self.note_ready(now)
            self.broadcast_ready(now)
        return self._advance(now)

    def contribution_lost(self, now: float, base: Digest, head: Head) -> list[Effect]:
        """The bytes of a journaled contribution are gone. The root stands, so there will be no other under this base:
        it is announced, that the round may close, and nothing is sent.
        """
        if base == self.tip.base and self.me not in self.decree.exchange.heads:
            self.decree.exchange.announce(self.me, head)
            self.decree.empty = True
            self.note_ready(now)
            self.broadcast_ready(now)
        return self._advance(now)

    def nothing_to_contribute(self, now: float, base: Digest) -> list[Effect]:
        """The trainer was asked to freeze and had taken no step under `base`."""
        if base == self.tip.base:
            self.decree.empty = True
            self.broadcast_ready(now)
        return self._advance(now)

    def reduced(
        self,
        now: float,
        base: Digest,
        part: int,
        result: Digest | None,
        roots: tuple[Digest, ...] = (),
        bad: tuple[PeerId, ...] = (),
    ) -> list[Effect]:
        """A `Reduce` is done: `result` is stored, or the contributions of `bad` were unusable and are left out."""
        if base == self.tip.base:
            exchange = self.decree.exchange
            for peer in bad:
                exchange.exclude(peer, part)
                self.out.append(
                    Note("unusable_contribution", f"part {part} from {peer_name(peer)} is unusable and left out", peer)
                )
            if result is not None:
                blob = Blob(BlobKind.RESULT, result, self.shape.result_bytes[part], base, part=part, roots=roots)
                hear.hold(self, self.me, blob, None, now)
        return self._advance(now)

    def stepped(
        self, now: float, base: Digest, part: int, result: Digest, chunks: tuple[Digest, ...] | None
    ) -> list[Effect]:
        """A `Step` is done; `chunks` is None if the result's bytes do not decode to finite numbers."""
        if base == self.tip.base:
            self.decree.stepping.discard((part, result))
            self.decree.stepped[part, result] = chunks
            if chunks is None and not self.decree.committing:  # else the state has moved on meanwhile
                self.out.append(Note("unusable_result", f"the result of part {part} does not decode to finite numbers"))
        return self._advance(now)

    def lost(self, now: float, base: Digest, part: int, result: Digest) -> list[Effect]:
        """A `Step` found no intact bytes under the digest: they have to be fetched."""
        self.results_held.pop(result, None)
        self.gathered = False
        if base == self.tip.base:
            self.decree.stepping.discard((part, result))
        return self._advance(now)

    def committed(self, now: float, certificate: Certificate) -> list[Effect]:
        """A `Commit` is done: the certificate is logged and its state is in force."""
        if self.chain.parent(certificate.id) != self.tip.id:
            self.chain.move(certificate.value.parent)
        self.chain.move(certificate.id)
        return self._arrived(now)

    def adopted(self, now: float, target: Digest) -> list[Effect]:
        """An `Adopt` is done: this peer stands on another lineage now."""
        self.adopting = None
        self.chain.move(target)
        return self._arrived(now)

    def unreachable(self, now: float, target: Digest, lost: Digest) -> list[Effect]:
        """An `Adopt` failed: bytes of the certificate `lost` on the way to `target` are gone or wrong."""
        self.adopting = None
        self.out.append(Note("lineage_unreachable", f"the state of certificate {target.hex()[:16]} cannot be rebuilt"))
        follow.give_up(self, target, lost)
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
        """Say goodbye. A voter stays for the value that removes it, until `departed`."""
        self.leaving = True
        self.broadcast_ready(now)
        return self._advance(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        return self._advance(now)

    def deadline(self, now: float) -> float:
        """When `tick` is due if nothing else happens."""
        if min(self.pace.next_heartbeat, self._nudge_at) <= now:
            return now
        times = [self.pace.next_change(now), self.wants.next_deadline(now), self._nudge_at]
        times += [
            at
            for at in (
                lead.turn_at(self, now), self.decree.exchange.grace_ends, lastballot.due_at(self, now),
            )
            if at is not None
        ]
        return min(at for at in times if at > now)

    # Arriving at a state.

    def _arrived(self, now: float) -> list[Effect]:
        """The tip is a certificate whose state is in force: let go of what is buried, and begin anew."""
        self.inner_step = self.tokens = 0
        self._let_go()
        self.decree = self.new_decree(now)
        self.vote_again()
        self.broadcast_ready(now)
        for parent in (self.tip.id, self.tip.base):
            for event in self._early.pop(parent, []):
                event(now)
        return self._advance(now)

    def _let_go(self) -> None:
        tip, chain = self.tip, self.chain
        path = chain.recent_links(tip.id, self.settings.retain_rounds + 1)
        bases = [link.id for link in path if isinstance(link, Certificate)][:KEPT_BASES]
        self.out.append(KeepParts(frozenset({tip.id, *bases, *self._early})))
        if len(path) > self.settings.retain_rounds:
            old = chain.tip_of(chain.parent(path[-1].id) or chain.genesis.id).base
            self.out.append(Discard(old))
            self.results_held = {digest: base for digest, base in self.results_held.items() if base != old}
            self.wants.forget({old})
        kept = {
            parent: acceptor for parent, acceptor in self.memory.items()
            if parent not in chain
            or not (chain.buried(parent) or chain.tip_of(parent).round < tip.round - self.settings.retain_rounds)
        }
        self.memory = kept
        self.out.append(Prune(frozenset(kept), frozenset({tip.id, *bases}), tip.id))
        self.forks = {parent: forks for parent, forks in self.forks.items() if not chain.buried(parent)}

    # Messages.

    def _know(self, peer: PeerId) -> None:
        """Peers known are told how this one fares; invented identities cannot make that a burden."""
        if peer != self.me and len(self.known) < MAX_CONTRIBUTORS:
            self.known.add(peer)

    def _under(
        self, parent: Digest, here: Digest, peer: PeerId, now: float, event: Callable[[float], None], *,
        heavy: bool = False,
    ) -> None:
        """Run an event under its parent: now, later, or never, answering with the link behind it.

        `here` is the tip for messages and the base for bytes: what was promised under the base of a FORK means nothing
        behind it.
        """
        if parent == here:
            event(now)
        elif parent in self.chain:
            hear.answer(self, peer, parent, now)
        elif heavy:
            return  # it is said again, and could fill the memory
        elif parent in self._early or len(self._early) < EARLY_PARENTS:
            events = self._early.setdefault(parent, [])
            if len(events) < EARLY_EVENTS:
                events.append(event)
        else:
            self._early.pop(next(iter(self._early)))
            self._early[parent] = [event]

    # What has become possible.

    def _advance(self, now: float) -> list[Effect]:
        self.pace.notice(now)
        self.look_around(now)
        for event in self._early.pop(self.tip.id, []):
            event(now)
        if not self.finished:
            certify.certify(self)
        follow.gather(self)
        follow.follow(self, now)
        lastballot.choose(self, now)
        if self.decree.certificate is None and self.adopting is None and not self.finished:
            self._take_part(now)
        self.out += self.wants.requests(now, lambda peer: self.has_bytes(peer, now), first=self.tip.base)
        if now >= self.pace.next_heartbeat:
            self.broadcast_ready(now)
        if now >= self._nudge_at:
            self._nudge(now)
        return self.drain()

    def _take_part(self, now: float) -> None:
        if self.tip.bound is not None:
            certify.fetch(self, self.tip.bound, [])
        lead.take_turn(self, now)
        self._exchange(now)
        lead.reassign(self, now)
        lead.propose(self, now)
        certify.vote(self)
        certify.certify(self)
        lastballot.initiate(self, now)
        follow.gather(self)
        follow.follow(self, now)

    def _exchange(self, now: float) -> None:
        exchange = self.decree.exchange
        if exchange.start is None:
            return
        self.out += exchange.sends(lambda peer: self.pace.present(peer, now))
        self.out += exchange.reductions(now, lambda peer: lead.may_contribute(self, peer, now))
        finished = exchange.own_results()
        everybody = [p for p in self.audience() if self.pace.present(p, now)] if finished else []
        for part in finished:
            self.out += exchange.spread(part, everybody)

    # Sending.

    def _nudge(self, now: float) -> None:
        """Messages may be lost: what a ballot waits for is said again."""
        self._nudge_at = now + 2 * self.settings.heartbeat_s
        decree = self.decree
        if decree.certificate is not None or self.finished or self.adopting is not None:
            return
        if decree.proposer is not None and decree.exchange.start is not None:
            self.to_round(decree.exchange.start)
            if decree.proposer.said is not None:
                self.to_voters(decree.proposer.said)
            elif decree.proposer.ballot > 0:
                self.to_voters(Prepare(decree.tip.id, decree.proposer.ballot))
        if decree.vote is not None:
            self.to_voters(Voted(decree.vote))
