"""All that a peer holds about one parent: the exchange under it, what it promised and accepted, the votes it saw.

One `Decree` lives from the commit of its parent to the commit of its child. No clock and no IO; `round` drives it.
"""

from dataclasses import dataclass, field

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Tip
from atoll.p2p.round.exchange import Exchange
from atoll.p2p.round.synod import Acceptor, Proposer, Tally
from atoll.protocol.certificate import Certificate, PartResult, Value, Vote, round_tokens
from atoll.protocol.digest import Digest, state_digest
from atoll.protocol.messages import Propose

Chunks = tuple[Digest, ...]
"""Digests of the next state's chunks of one part: the parameters', and the momentum's where there is one."""


@dataclass
class Decree:
    tip: Tip
    exchange: Exchange
    learned_at: float
    progress_at: float = 0.0  # last time anything new happened under this parent
    first_ready_at: float | None = None
    ballot: int = -1  # highest ballot heard of
    delta_factor: float = 1.0  # grows by half after each failed ballot whose leader was alive
    frozen: bool = False  # the trainer was asked for its contribution
    empty: bool = False  # and had nothing to give
    acceptor: Acceptor = field(default_factory=Acceptor)
    proposer: Proposer | None = None
    pending: Propose | None = None
    vote: Vote | None = None
    tally: Tally = field(default_factory=Tally)
    values: dict[Digest, Value] = field(default_factory=dict)
    certificate: Certificate | None = None
    committing: bool = False
    stepped: dict[tuple[int, Digest], Chunks | None] = field(default_factory=dict)
    stepping: set[tuple[int, Digest]] = field(default_factory=set)
    stored: set[Digest] = field(default_factory=set)  # results whose bytes are on this peer's disk

    def usable(self, part: int, result: Digest) -> bool:
        """The result is stored here and the next state's chunks of its part are known and finite."""
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

    def own_value(self) -> Value | None:
        """The value that this peer would propose from what it holds; None while a part lacks its result."""
        outcome = self.exchange.outcome(self.tip, self.usable)
        if outcome is None:
            return None
        contributions, parts = outcome
        number = self.tip.round + 1
        tokens = self.tip.tokens + round_tokens(contributions, parts, self.exchange.shape.sizes)
        state = self.next_state(number, tokens, tuple(part.digest for part in parts))
        if state is None:
            return None
        return Value(
            self.tip.id, number, tokens, contributions, parts, electorates.successor(self.tip.electorate), state
        )

    def contradicts_announcements(self, value: Value) -> bool:
        """Whether the value lists another root for a peer than the one that this peer heard it announce."""
        heads = self.exchange.heads
        return any(
            c.peer in heads and (heads[c.peer].root, heads[c.peer].tokens) != (c.root, c.tokens)
            for c in value.contributions
        )


def result_digests(parts: tuple[PartResult, ...]) -> tuple[Digest, ...]:
    return tuple(part.digest for part in parts)
