"""Which certificates exist along this peer's lineage, and whether a new one belongs there. No IO; `run_store` keeps it.

Checks what a stranger can check without the bytes behind it: parent, counters, electorate, votes of one ballot and of a
quorum of the parent's electorate. The state digest is checked by whoever applies it.
"""

from dataclasses import dataclass

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.electorate import Electorate
from atoll.protocol.certificate import Certificate, Value, round_tokens
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.layout import Layout


@dataclass(frozen=True)
class Tip:
    """The last certified state: what the next round's parent is, and all that the next value is checked against."""

    id: Digest
    round: int
    tokens: int
    electorate: Electorate
    state: Digest


class Chain:
    """The training log from genesis to the tip."""

    def __init__(self, run_id: Digest, electorate: Electorate, genesis_state: Digest, layout: Layout) -> None:
        self.layout = layout
        self.sizes = tuple(layout.size(part) for part in range(layout.parts))
        self.genesis = Tip(run_id, 0, 0, electorate, genesis_state)
        self.tip = self.genesis
        self.certificates: list[Certificate] = []
        self._children: dict[Digest, Certificate] = {}

    def child(self, parent: Digest) -> Certificate | None:
        """The certified child of `parent` on this lineage."""
        return self._children.get(parent)

    def append(self, certificate: Certificate) -> None:
        """Make a certificate that passed `check` the tip."""
        value = certificate.value
        if value.parent != self.tip.id:
            raise ValueError("only a child of the tip can be appended")
        self.certificates.append(certificate)
        self._children[value.parent] = certificate
        self.tip = Tip(certificate.id, value.round, value.tokens, value.electorate, value.state)

    def check(self, certificate: Certificate) -> None:
        """Raise MalformedError or SignatureError unless this is a certified child of the tip."""
        check_value(certificate.value, self.tip, self.sizes)
        check_votes(certificate, self.tip)


def check_value(value: Value, parent: Tip, sizes: tuple[int, ...]) -> None:
    """Raise MalformedError unless `value` follows from its parent in all that can be recomputed without its bytes."""
    if value.parent != parent.id:
        raise MalformedError("the value belongs to another parent")
    if value.round != parent.round + 1:
        raise MalformedError(f"the value says round {value.round}, its parent is of round {parent.round}")
    if len(value.parts) != len(sizes):
        raise MalformedError(f"the value has {len(value.parts)} parts, the run has {len(sizes)}")
    if value.tokens != parent.tokens + round_tokens(value.contributions, value.parts, sizes):
        raise MalformedError("the value's tokens are not its parent's and its contributions' together")
    if value.electorate != electorates.successor(parent.electorate):
        raise MalformedError("the value names another electorate than the rules give")


def check_votes(certificate: Certificate, parent: Tip) -> None:
    """Raise unless the votes are valid, of electors under their journals, and a quorum of the parent's electorate."""
    entries = {entry.peer: entry.journal for entry in parent.electorate}
    seen = set()
    for vote in certificate.votes:
        if entries.get(vote.peer) != vote.journal or vote.peer in seen:
            raise SignatureError("a certificate carries a vote of somebody outside the electorate, or one twice")
        vote.check()
        seen.add(vote.peer)
    if not electorates.is_quorum(parent.electorate, seen):
        raise SignatureError(f"a certificate carries {len(seen)} votes, which is no quorum of {len(parent.electorate)}")
