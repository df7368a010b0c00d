"""One peer's round as data: chain, presence, the decree under the tip, effects to carry out, and how to address others.

`round` feeds it with events; `lead`, `certify`, `lastballot` and `follow` move it forward. No IO, no clock of its own.
"""

import enum
from collections.abc import Iterable, Mapping

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain, Tip
from atoll.p2p.round.decree import Decree
from atoll.p2p.round.effects import Effect, Freeze, Note, Save, Send, Step
from atoll.p2p.round.exchange import Exchange, Head, Shape
from atoll.p2p.round.orphans import Orphans
from atoll.p2p.round.pace import NEWCOMER_FACTOR, Pace
from atoll.p2p.round.sync import Wants
from atoll.p2p.round.synod import Acceptor
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Vote
from atoll.protocol.digest import Digest
from atoll.protocol.errors import SignatureError
from atoll.protocol.fork import Fork
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.manifest import ExchangeSettings
from atoll.protocol.messages import Message, Propose, Ready, Voted
from atoll.protocol.standing import Record, Standing

MESH_PEERS = 64
"""Up to this many peers everybody tells everybody how it fares; beyond, contributors tell voters and owners only."""


class Phase(enum.StrEnum):
    TRAIN = "TRAIN"
    EXCHANGE = "EXCHANGE"
    VOTED = "VOTED"
    LEFT = "LEFT"
    APPLY = "APPLY"
    SYNC = "SYNC"
    FINISHED = "FINISHED"


class Core:
    def __init__(
        self, identity: Identity, chain: Chain, settings: ExchangeSettings, *, journal: bytes,
        memory: Mapping[Digest, Acceptor], stored: Iterable[Digest], rounds: int, trains: bool, now: float,
    ) -> None:
        self.identity, self.me, self.journal = identity, identity.peer_id, journal
        self.chain, self.settings, self.rounds = chain, settings, rounds
        self.trains, self.leaving, self.cannot_vote, self.ticket = trains, False, False, b""
        self.inner_step, self.tokens, self.rate_bps = 0, 0, 0
        self.shape = Shape(chain.layout, settings)
        self.pace, self.wants = Pace(settings, now), Wants(settings.gone_after_s)
        self.memory = dict(memory)
        self.results_held: dict[Digest, Digest | None] = dict.fromkeys(stored)  # on disk; with their base where known
        self.known: set[PeerId] = set()
        self.banned: dict[PeerId, float] = {}  # who equivocated, and when it was heard of last
        self.records: dict[PeerId, Record] = {}  # what others want from the electorate, under the current base
        self.attendance: dict[PeerId, Vote] = {}  # votes for the tip, late ones too
        self.adopting: Digest | None = None
        self.genesis_open = chain.genesis.id in memory
        self.answered: dict[tuple[PeerId, Digest], float] = {}  # when a peer was sent what follows a link
        self.asked: dict[PeerId, float] = {}  # when a peer was asked for a link
        self.orphans = Orphans()
        self.gathered = False  # whether nothing new came since the bytes of certificates were asked for
        self.abandoned: set[Digest] = set()  # certificates of lineages that cannot be reached any more
        self.forks: dict[Digest, list[Fork]] = {}  # FORKs known, by their parent
        self.out: list[Effect] = []
        self._own_record: tuple[Digest, Record] | None = None
        self.decree = self.new_decree(now)

    # What this peer is.

    @property
    def tip(self) -> Tip:
        return self.chain.tip

    @property
    def phase(self) -> Phase:
        decree = self.decree
        if self.finished:
            return Phase.FINISHED
        if self.adopting is not None:
            return Phase.SYNC
        if decree.certificate is not None:
            return Phase.APPLY
        if decree.acceptor.left:
            return Phase.LEFT
        if decree.vote is not None:
            return Phase.VOTED
        return Phase.EXCHANGE if decree.exchange.start is not None else Phase.TRAIN

    @property
    def finished(self) -> bool:
        return 0 < self.rounds <= self.tip.round

    @property
    def leader(self) -> PeerId:
        """Who leads the highest ballot heard of under the current parent (ballot 0 before any)."""
        return self.tip.leader(max(self.decree.ballot, 0))

    @property
    def voting_journal(self) -> bytes | None:
        """The journal under which this peer votes at the tip; None if it does not vote, or has lost that journal."""
        named = self.tip.journal_of(self.me)
        if named == FIRST_JOURNAL:
            return named if self.tip.round == 0 and self.genesis_open else None
        return named if named == self.journal else None

    def look_around(self, now: float) -> None:
        """Whether the journal of genesis may be used: not by one that may have voted under it before and forgotten.

        A peer with an empty journal asks those who would know: once all voters say that they are at genesis, or the
        others had time to say otherwise, there was nothing to forget.
        """
        if self.tip.round > 0 or self.genesis_open:
            return
        said = [p.ready for p in self.pace.peers.values() if p.ready is not None]
        if any(ready.tip != self.chain.genesis.id for ready in said):
            return
        others = [peer for peer in self.tip.voters if peer != self.me]
        heard = all((p := self.pace.peers.get(peer)) is not None and p.ready is not None for peer in others)
        self.genesis_open = heard or now >= self.pace.started_at + NEWCOMER_FACTOR * self.settings.gone_after_s

    @property
    def votes(self) -> bool:
        return self.voting_journal is not None

    def voters_present(self, now: float) -> list[PeerId]:
        """Voters at the tip that are alive, this peer among them."""
        return [p for p in self.tip.voters if p == self.me or self.pace.present(p, now)]

    def voters_here(self, now: float) -> list[PeerId]:
        """Voters at the tip that are alive and stand there themselves."""
        def stands_here(peer: PeerId) -> bool:
            ready = self.pace.ready(peer, now)
            return ready is not None and ready.tip == self.tip.id

        return [p for p in self.tip.voters if p == self.me or stands_here(p)]

    def stalled(self, now: float) -> bool:
        """Whether this peer has left the decree under the tip, or its ballots have got nowhere for half of L.

        Where no ballot was opened at all, training may take its time: then as long as a lone voter would wait.
        """
        decree, size = self.decree, len(self.tip.voters)
        since = decree.learned_at if decree.stalled_at is None else decree.stalled_at
        patience = self.settings.fork_timeout_s(size) * (size if decree.stalled_at is None else 0.5)
        return decree.acceptor.left or now >= max(since, self.pace.woke_at) + patience

    def has_bytes(self, peer: PeerId, now: float) -> bool:
        """Whether bytes can be asked of a peer: they are named by their digests, so of a banned one, too."""
        heard = self.banned.get(peer)
        return self.pace.present(peer, now) or (heard is not None and now < heard + self.settings.gone_after_s)

    def departed(self, now: float) -> bool:
        """Whether a peer that leaves may go: the others can do without it, or there is nobody to wait for.

        Of the others somebody must hold the state where it goes, or what it certified last would go with it.
        """
        if not self.leaving:
            return False
        staying = [p for p in self.voters_present(now) if p != self.me and not self.pace.leaving(p)]
        if self.finished or not staying:
            return True
        held = any((ready := self.pace.ready(p, now)) is not None and ready.base == self.tip.base for p in staying)
        return held and (not self.votes or electorates.is_quorum(self.tip.electorate, staying))

    def standing(self) -> Standing:
        """What this peer wants from the electorate."""
        if self.leaving:
            return Standing.LEAVE
        named = self.tip.journal_of(self.me)
        if self.cannot_vote:
            return Standing.VOTER if named is None else Standing.CANNOT_VOTE
        wanted = (named is not None and named != self.journal) or (named is None and (self.trains or bool(self.ticket)))
        return Standing.JOIN if wanted else Standing.VOTER

    def record(self) -> Record | None:
        """What this peer wants from the electorate, signed under the current base; None: nothing."""
        kind = self.standing()
        if kind is Standing.VOTER:
            return None
        if self._own_record is None or self._own_record[0] != self.tip.base or self._own_record[1].kind is not kind:
            ticket = self.ticket if kind is Standing.JOIN else b""
            signed = Record.sign(self.identity, self.tip.base, kind, self.journal, ticket)
            self._own_record = self.tip.base, signed
        return self._own_record[1]

    def all_records(self) -> list[Record]:
        own = self.record()
        return [*(r for p, r in self.records.items() if p != self.me), *([own] if own is not None else [])]

    def attendees(self) -> set[PeerId]:
        """Who voted for the tip, as far as this peer knows."""
        link = self.chain.link(self.tip.id)
        counted = {vote.peer for vote in link.votes} if isinstance(link, Certificate) else set()
        return counted | self.attendance.keys()

    # What it says.

    def ready(self) -> Ready:
        tip, head = self.tip, self.decree.exchange.heads.get(self.me)
        return Ready(
            tip.id,
            tip.base,
            tip.round,
            str(self.phase),
            self.inner_step,
            self.trains and not self.decree.empty,
            self.rate_bps,
            self.journal,
            head.root if head else None,
            head.tokens if head else self.tokens,
            self.record(),
        )

    def broadcast_ready(self, now: float) -> None:
        self.pace.next_heartbeat = now + self.settings.heartbeat_s
        ready = self.ready()
        self.out += [Send(peer, ready) for peer in self._listeners() if peer != self.me]

    def _listeners(self) -> list[PeerId]:
        if len(self.known) <= MESH_PEERS or self.me in self.tip.voters:
            return sorted(self.known)
        return sorted({*self.tip.voters, *self.decree.exchange.owners})

    def audience(self) -> list[PeerId]:
        """Voters and members of the round under way, without this peer."""
        start = self.decree.exchange.start
        members = start.members if start is not None else ()
        return sorted({*members, *self.tip.voters} - {self.me})

    def to_round(self, message: Message) -> None:
        self.out += [Send(peer, message) for peer in self.audience()]

    def to_voters(self, message: Message) -> None:
        self.out += [Send(peer, message) for peer in self.tip.voters if peer != self.me]

    def to_known(self, message: Message) -> None:
        self.out += [Send(peer, message) for peer in sorted(self.known) if peer != self.me]

    # The decree under the tip.

    def new_decree(self, now: float) -> Decree:
        """The decree for the tip; the exchange goes on where only a FORK came between."""
        tip, old = self.tip, getattr(self, "decree", None)
        exchange = Exchange(tip.base, self.me, self.shape)
        inherited = old is not None and old.exchange.base == tip.base
        if old is not None and inherited:
            exchange = old.exchange
            exchange.reopen()
        decree = Decree(tip, exchange, now, progress_at=now)
        if old is not None and inherited:
            decree.stepped, decree.stepping = old.stepped, old.stepping
            decree.frozen, decree.empty, decree.first_ready_at = old.frozen, old.empty, old.first_ready_at
        else:
            self.records.clear()
            self._announcements(decree, now)
        self.attendance = {} if old is None else old.tally.voters_for(tip.id)
        decree.acceptor = self.memory_of(tip.id)
        if decree.used:
            decree.ballot = decree.acceptor.promised
        decree.left_at = now
        return decree

    def _announcements(self, decree: Decree, now: float) -> None:
        """Contributions and records that peers announced before this one arrived at their base."""
        for peer, presence in self.pace.peers.items():
            ready = presence.ready
            if ready is None or ready.base != decree.tip.base:
                continue
            if ready.record is not None:
                self.note_record(peer, ready.record)
            if ready.root is not None and ready.tokens > 0:
                decree.exchange.announce(peer, Head(ready.root, ready.tokens, ready.journal))
                decree.first_ready_at = now

    def note_record(self, peer: PeerId, record: Record) -> None:
        """Keep what a peer wants from the electorate, if it signed that under this base."""
        if self.records.get(peer) == record:
            return
        try:
            record.check(self.tip.base)
            record.has_ticket(self.chain.policy.run_id, self.chain.policy.owner)
        except SignatureError as error:
            self.out.append(Note("bad_record", f"{peer_name(peer)}: {error}", peer))
        else:
            self.records[peer] = record

    def vote_again(self) -> None:
        """Re-enter VOTED after a restart: the journal holds an accepted value."""
        accepted, journal = self.decree.acceptor.accepted, self.voting_journal
        if accepted is None or journal is None:
            return
        ballot, value = accepted
        self.decree.values[value.id] = value
        self.decree.pending = Propose(ballot, value, ballot > 0)
        if not self.decree.acceptor.left:
            self.cast(Vote.cast(self.identity, journal, ballot, value))

    def cast(self, vote: Vote) -> None:
        self.decree.vote = vote
        self.decree.tally.add(vote, self.tip.countable)
        self.to_voters(Voted(vote))

    def memory_of(self, parent: Digest) -> Acceptor:
        return self.memory.get(parent, Acceptor())

    def remember(self, acceptor: Acceptor, results: tuple[Digest, ...] = ()) -> None:
        """Make what was promised or accepted under the tip durable, before anything after this leaves."""
        self.decree.acceptor = self.memory[self.tip.id] = acceptor
        self.out.append(Save(self.tip.id, acceptor, results))

    def heard_ballot(self, ballot: int, now: float) -> None:
        decree = self.decree
        if ballot > decree.ballot:
            previous = decree.tip.leader(max(decree.ballot, 0))
            if decree.ballot >= 0:
                decree.failed += 1
                if previous == self.me or self.pace.present(previous, now):
                    decree.delta_factor *= 1.5
            decree.ballot = ballot
            if decree.stalled_at is None:
                decree.stalled_at = now
            if decree.proposer is not None and decree.proposer.ballot < ballot:
                decree.proposer = None
            decree.progress_at = now  # not for what is only said again: the next ballot would never come

    def step(self, part: int, result: Digest) -> None:
        decree = self.decree
        if (part, result) not in decree.stepped and (part, result) not in decree.stepping:
            decree.stepping.add((part, result))
            self.out.append(Step(decree.tip.base, part, result))

    def freeze(self) -> None:
        decree = self.decree
        if self.trains and not decree.frozen and self.me not in decree.exchange.heads:
            decree.frozen = True
            self.out.append(Freeze(decree.tip.base))

    def drain(self) -> list[Effect]:
        out, self.out = self.out, []
        return out

    def note_ready(self, now: float) -> None:
        if self.decree.first_ready_at is None:
            self.decree.first_ready_at = now
