"""At most one value per parent: single-decree Paxos (Lamport, "The Part-Time Parliament"), DESIGN rules 1, 3, 4 and 6.

Ballot 0 skips the prepare phase: nobody can have accepted anything before it. The acceptor is two numbers, a value and
whether it has left, which its owner makes durable before a promise or vote leaves; the proposer is what a leader
gathers for one ballot; the tally turns votes into a certificate. Pure: no clock, no messages, no IO. `round` decides
when, here stands only what is allowed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.electorate import Electorate
from atoll.protocol.certificate import Certificate, Value, Vote
from atoll.protocol.digest import Digest
from atoll.protocol.fork import LastPromise
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Propose

Accepted = tuple[int, Value]


@dataclass(frozen=True)
class Acceptor:
    """A voter's durable memory under one parent. `left`: it has given its last promise, and never votes here again."""

    promised: int = 0
    accepted: Accepted | None = None
    left: bool = False

    def promise(self, ballot: int) -> "Acceptor | None":
        """After a PREPARE of `ballot`; None if a higher ballot has been promised, or this voter has left."""
        return replace(self, promised=ballot) if ballot >= self.promised and not self.left else None

    def accept(self, ballot: int, value: Value) -> "Acceptor | None":
        """After voting for `value`; None if a promise or another vote in the same ballot forbids it."""
        if ballot < self.promised or self.left:
            return None
        if self.accepted is not None and self.accepted[0] == ballot and self.accepted[1].id != value.id:
            return None
        return Acceptor(ballot, (ballot, value))

    def leave(self) -> "Acceptor":
        """After PREPARE(last): may be repeated, for another initiator too."""
        return replace(self, left=True)


def binding(promises: Mapping[PeerId, Accepted | None]) -> Value | None:
    """The value that a leader must propose: that of the highest ballot accepted among the promises, if there is one."""
    accepted = [item for item in promises.values() if item is not None]
    return max(accepted, key=lambda item: item[0])[1] if accepted else None


def evidence(promises: Iterable[LastPromise], electorate: Electorate) -> tuple[int, Digest] | None:
    """(ballot, value id) that a FORK is bound to: the highest accepted under a journal that the electorate names."""
    entries = {entry.peer: entry.journal for entry in electorate}
    said = [p.accepted for p in promises if p.accepted is not None and entries.get(p.peer) == p.journal]
    return max(said, key=lambda item: item[0]) if said else None


@dataclass
class Proposer:
    """What the leader of one ballot has gathered. Proposes once: `value` is never replaced."""

    ballot: int
    promises: dict[PeerId, Accepted | None] = field(default_factory=dict)
    value: Value | None = None
    said: Propose | None = None  # as it was sent

    def may_propose(self, electorate: Electorate) -> bool:
        return self.value is None and (self.ballot == 0 or electorates.is_quorum(electorate, self.promises))

    def bound(self) -> Value | None:
        return binding(self.promises)


@dataclass
class Tally:
    """Votes seen under one parent, by (ballot, certificate id): votes of different ballots never meet."""

    votes: dict[tuple[int, Digest], dict[PeerId, Vote]] = field(default_factory=dict)

    def add(self, vote: Vote, electorate: Electorate) -> bool:
        """Count a vote whose signature holds; False if it is no elector's, under another journal, or known."""
        if not any(entry.peer == vote.peer and entry.journal == vote.journal for entry in electorate):
            return False
        ballot = self.votes.setdefault((vote.ballot, vote.certificate), {})
        if vote.peer in ballot:
            return False
        ballot[vote.peer] = vote
        return True

    def voters_for(self, certificate: Digest) -> dict[PeerId, Vote]:
        """Votes for this value, in whatever ballot."""
        return {p: v for (_, name), votes in self.votes.items() if name == certificate for p, v in votes.items()}

    def contradiction(self, vote: Vote) -> Vote | None:
        """Another vote of the same peer in the same ballot: with this one, the proof that it equivocates."""
        for (ballot, name), votes in self.votes.items():
            if ballot == vote.ballot and name != vote.certificate and vote.peer in votes:
                return votes[vote.peer]
        return None

    def certificate(self, values: Mapping[Digest, Value], electorate: Electorate) -> Certificate | None:
        """The certificate, once a quorum voted in one ballot for one value among `values` (by id)."""
        for (ballot, name), votes in sorted(self.votes.items(), key=lambda item: item[0]):
            if name in values and electorates.is_quorum(electorate, votes):
                return Certificate(values[name], ballot, tuple(votes[peer] for peer in sorted(votes)))
        return None
