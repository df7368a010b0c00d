"""All that a peer holds about one parent: what it promised and accepted, the votes it saw, the exchange under it.

One `Decree` lives from the moment its parent becomes the tip until the tip moves on. The exchange belongs to the base,
the nearest certificate, and is inherited by a decree behind a FORK. No clock and no IO; `round` drives it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Tip
from atoll.p2p.round.electorate import Policy
from atoll.p2p.round.exchange import Exchange
from atoll.p2p.round.synod import Accepted, Acceptor, Proposer, Tally
from atoll.protocol.certificate import (
    MAX_RECORDS,
    Certificate,
    Contribution,
    PartResult,
    Value,
    Vote,
    bitmap,
    round_tokens,
)
from atoll.protocol.digest import ZERO_DIGEST, Digest, state_digest
from atoll.protocol.fork import LastPromise, Rank
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Propose
from atoll.protocol.standing import Record

Chunks = tuple[Digest, ...]
"""Digests of the next state's chunks of one part: the parameters', and the momentum's where there is one."""


@dataclass
class LastBallot:
    """What the initiator of a last ballot gathers until its window closes."""

    nonce: bytes
    rank: Rank
    until: float
    promises: dict[PeerId, tuple[LastPromise, Accepted | None]] = field(default_factory=dict)


@dataclass
class Decree:
    tip: Tip
    exchange: Exchange
    learned_at: float
    progress_at: float = 0.0  # last time anything new happened under this parent
    first_ready_at: float | None = None
    target_at: float | None = None  # when the round's token target was seen to be reached
    ballot: int = -1  # highest ballot heard of
    failed: int = 0  # ballots that came to nothing
    delta_factor: float = 1.0  # grows by half after each failed ballot whose leader was alive
    stalled_at: float | None = None  # since when the last ballot's patience counts
    left_at: float = 0.0  # when this peer gave its newest last promise
    frozen: bool = False  # the trainer was asked for its contribution
    empty: bool = False  # and had nothing to give
    acceptor: Acceptor = field(default_factory=Acceptor)
    proposer: Proposer | None = None
    last: LastBallot | None = None
    pending: Propose | None = None
    vote: Vote | None = None
    tally: Tally = field(default_factory=Tally)
    values: dict[Digest, Value] = field(default_factory=dict)
    stepped: dict[tuple[int, Digest], Chunks | None] = field(default_factory=dict)  # None: undecodable
    stepping: set[tuple[int, Digest]] = field(default_factory=set)
    certificate: Certificate | None = None  # the certified child, while its state is being reached
    committing: bool = False

    @property
    def used(self) -> bool:
        """Whether this peer has promised or accepted anything here."""
        return self.acceptor.promised > 0 or self.acceptor.accepted is not None

    def usable(self, part: int, result: Digest) -> bool:
        """Whether the result's bytes are held and decode to finite numbers."""
        return self.stepped.get((part, result)) is not None

    def unstepped(self, value: Value) -> list[tuple[int, Digest]]:
        """Results of `value` whose chunks are not known yet."""
        return [(i, p.digest) for i, p in enumerate(value.parts) if (i, p.digest) not in self.stepped]

    def next_state(self, number: int, tokens: int, results: tuple[Digest, ...]) -> Digest | None:
        """Digest of the state after these results, one per part; None while a part is missing or unusable."""
        chunks = [self.stepped.get((part, result)) for part, result in enumerate(results)]
        known = [chunk for chunk in chunks if chunk is not None]
        if len(known) < len(chunks):
            return None
        per_part = len(known[0])
        return state_digest(number, tokens, [chunk[section] for section in range(per_part) for chunk in known])

    def agrees(self, value: Value) -> bool | None:
        """Whether this peer's own arithmetic gives the value's state; None while bytes are missing."""
        if any(self.stepped.get((i, p.digest), ()) == () for i, p in enumerate(value.parts)):
            return None
        return self.next_state(value.round, value.tokens, tuple(p.digest for p in value.parts)) == value.state

    def contradicts_announcements(self, value: Value) -> bool:
        """Whether the value lists another root than this peer heard its contributor announce under that journal."""
        heads = self.exchange.heads
        return any(
            c.peer in heads
            and heads[c.peer].journal == c.journal
            and (heads[c.peer].root, heads[c.peer].tokens) != (c.root, c.tokens)
            for c in value.contributions
        )

    # The value that this peer would propose.

    def own_value(
        self, policy: Policy, attendees: Iterable[PeerId], records: Iterable[Record], *, may_be_empty: bool
    ) -> Value | None:
        """A value from what this peer holds, or what a FORK is bound to; None while a part lacks its result."""
        bound = self.tip.bound
        found = (bound.contributions, bound.parts) if bound is not None else self.exchange.outcome(self.usable)
        if found is None and may_be_empty:
            found = (), tuple(PartResult(b"", ZERO_DIGEST) for _ in range(self.exchange.shape.parts))
        if found is None:
            return None
        contributions, parts = found
        number = self.tip.round + 1
        tokens = self.tip.tokens + round_tokens(contributions, parts, self.exchange.shape.sizes)
        state = self.next_state(number, tokens, tuple(part.digest for part in parts))
        if state is None:
            return None
        before, present = self.tip.standings, set(attendees)
        attendance = bitmap({i for i, peer in enumerate(before.decided_by) if peer in present}, len(before.decided_by))
        kept = tuple(sorted(self._of_use(records, policy, contributions)[:MAX_RECORDS]))
        after = electorates.successor(before, policy, contributions, attendance, kept)
        return Value(
            self.tip.id, number, tokens, contributions, parts, attendance, kept, after.electorate, state
        )

    def _of_use(
        self, records: Iterable[Record], policy: Policy, contributions: tuple[Contribution, ...]
    ) -> list[Record]:
        """Records that can change the electorate: of voters, and of those who have earned admission or were invited."""
        contributing = {c.peer for c in contributions}
        streaks = self.tip.standings.streaks
        found = [
            r for r in records
            if r.peer in self.tip.voters or r.ticket
            or (r.peer in contributing and streaks.get(r.peer, 0) + 1 >= policy.admit_after > 0)
        ]
        return sorted(found, key=lambda record: record.peer not in self.tip.voters)


def result_digests(parts: tuple[PartResult, ...]) -> tuple[Digest, ...]:
    """Digests of the results that have bytes."""
    return tuple(part.digest for part in parts if part.digest != ZERO_DIGEST)


