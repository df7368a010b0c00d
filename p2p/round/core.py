"""One peer's round as data: chain, presence, the decree under the tip, effects to carry out, and how to address others.

`round` feeds it with events, `lead` and `certify` move it forward. No IO, no clock of its own.
"""

import enum

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.p2p.round.decree import Decree
from atoll.p2p.round.effects import Effect, Freeze, Send, Step
from atoll.p2p.round.exchange import Exchange, Shape
from atoll.p2p.round.pace import Pace
from atoll.p2p.round.sync import Wants
from atoll.protocol.certificate import FIRST_JOURNAL
from atoll.protocol.digest import Digest
from atoll.protocol.identity import Identity, PeerId
from atoll.protocol.manifest import ExchangeSettings
from atoll.protocol.messages import Message, Ready


class Phase(enum.StrEnum):
    TRAIN = "TRAIN"
    EXCHANGE = "EXCHANGE"
    VOTED = "VOTED"
    APPLY = "APPLY"
    SYNC = "SYNC"
    FINISHED = "FINISHED"


class Core:
    def __init__(
        self, identity: Identity, chain: Chain, settings: ExchangeSettings, *, rounds: int, trains: bool, now: float
    ) -> None:
        self.identity, self.me = identity, identity.peer_id
        self.chain, self.settings, self.rounds = chain, settings, rounds
        self.trains, self.leaving, self.inner_step, self.rate_bps = trains, False, 0, 0
        self.shape = Shape(chain.layout, settings)
        self.pace, self.wants = Pace(settings, now), Wants(settings.gone_after_s)
        self.known: set[PeerId] = set()
        self.out: list[Effect] = []
        self.decree = self.new_decree(now)

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

    def ready(self) -> Ready:
        tip, head = self.chain.tip, self.decree.exchange.heads.get(self.me)
        trains = self.trains and not self.decree.empty
        return Ready(
            tip.id,
            tip.round,
            str(self.phase),
            self.inner_step,
            trains,
            self.leaving,
            self.rate_bps,
            FIRST_JOURNAL,
            head.root if head else None,
            head.tokens if head else 0,
        )

    def broadcast_ready(self, now: float) -> None:
        self.pace.next_heartbeat = now + self.settings.heartbeat_s
        ready = self.ready()
        self.out += [Send(peer, ready) for peer in sorted(self.known) if peer != self.me]

    def audience(self) -> list[PeerId]:
        """Voters and members of the round under way, without this peer."""
        start = self.decree.exchange.start
        members = start.members if start is not None else ()
        return sorted({*members, *electorates.peers(self.chain.tip.electorate)} - {self.me})

    def to_round(self, message: Message) -> None:
        self.out += [Send(peer, message) for peer in self.audience()]

    def to_voters(self, message: Message) -> None:
        self.out += [Send(peer, message) for peer in electorates.peers(self.chain.tip.electorate) if peer != self.me]

    def new_decree(self, now: float) -> Decree:
        tip = self.chain.tip
        self.wanted_part: dict[Digest, int] = {}
        decree = Decree(tip, Exchange(tip.id, self.me, self.shape), now, progress_at=now)
        for peer, presence in self.pace.peers.items():
            ready = presence.ready
            if ready is not None and ready.tip == tip.id and ready.root is not None and ready.tokens > 0:
                decree.exchange.announce(peer, ready.root, ready.tokens)
                decree.first_ready_at = now
        return decree

    def heard_ballot(self, ballot: int, now: float) -> None:
        decree = self.decree
        if ballot > decree.ballot:
            previous = electorates.leader(decree.tip.id, decree.tip.electorate, max(decree.ballot, 0))
            if decree.ballot >= 0 and (previous == self.me or self.pace.present(previous, now)):
                decree.delta_factor *= 1.5
            decree.ballot = ballot
            if decree.proposer is not None and decree.proposer.ballot < ballot:
                decree.proposer = None
        decree.progress_at = now

    def step(self, part: int, result: Digest) -> None:
        decree = self.decree
        if (part, result) not in decree.stepped and (part, result) not in decree.stepping:
            decree.stepping.add((part, result))
            self.out.append(Step(decree.tip.id, part, result))

    def freeze(self) -> None:
        decree = self.decree
        if self.trains and not decree.frozen and self.me not in decree.exchange.heads:
            decree.frozen = True
            self.out.append(Freeze(decree.tip.id))

    def drain(self) -> list[Effect]:
        out, self.out = self.out, []
        return out

    def note_ready(self, now: float) -> None:
        if self.decree.first_ready_at is None:
            self.decree.first_ready_at = now
