"""What a round decides, and the proof that it was decided.

A `Value` is the whole outcome of a round: who contributed what, what each part's average is, who votes next, and the
state that follows. A `Certificate` is a value with the votes of a quorum, all of one ballot. Its id covers parent and
value only (DESIGN rule 5): two valid subsets of signatures are the same certificate. Certificates are the training log.

Who may vote and what a quorum is stands in `atoll.p2p.round.electorate`; here are only bytes and their bounds.
"""

import functools
from dataclasses import dataclass
from typing import Any

from atoll.protocol import canonical
from atoll.protocol.digest import Digest, tree_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, check_peer_id, verify
from atoll.protocol.manifest import MAX_CONTRIBUTORS, MAX_ELECTORATE
from atoll.protocol.read import count, digest, exactly, fields, octets, rows
from atoll.protocol.standing import JOURNAL_BYTES, Record

VALUE_LIMIT = 16 << 20
MAX_PARTS = 1 << 20
MAX_BALLOT = 1 << 31
MAX_RECORDS = MAX_CONTRIBUTORS + MAX_ELECTORATE
FIRST_JOURNAL = bytes(JOURNAL_BYTES)
"""Journal id of an electorate named by a manifest, whose peers have kept no journal yet: good for one certificate."""


@dataclass(frozen=True, order=True)
class Voter:
    """An entry of the electorate: a vote counts only under the journal id that the parent certificate names."""

    peer: PeerId
    journal: bytes


@dataclass(frozen=True, order=True)
class Contribution:
    """One peer's immutable pseudo-gradient of a round: `root` names the list of its parts' digests."""

    peer: PeerId
    root: Digest
    tokens: int
    journal: bytes = FIRST_JOURNAL  # two roots under different journals are no offence: a disk was lost


@dataclass(frozen=True)
class PartResult:
    """The average of one part: which contributions are in it (bit i = i-th of the value's list), and its bytes.

    In an empty value every part has the digest ZERO_DIGEST: the state stays as it is.
    """

    included: bytes
    digest: Digest

    def includes(self, index: int) -> bool:
        return bool(self.included[index >> 3] >> (index & 7) & 1)


@dataclass(frozen=True)
class Value:
    parent: Digest
    round: int  # rounds certified along this chain, this one included
    tokens: int  # certified tokens along this chain, this round's included
    contributions: tuple[Contribution, ...]  # ascending peer order
    parts: tuple[PartResult, ...]
    attendance: bytes  # bitmap over the electorate that certified the parent: who voted for it, as far as is known
    records: tuple[Record, ...]  # what changes the electorate, ascending by peer, one each
    electorate: tuple[Voter, ...]  # of the next round, by seniority
    state: Digest  # digest of the outer state after this round

    @functools.cached_property
    def id(self) -> Digest:
        """The certificate id: H(parent, value)."""
        return tree_digest("certificate", self.tree())

    def tree(self) -> list[Any]:
        return [
            self.parent,
            self.round,
            self.tokens,
            [[c.peer, c.root, c.tokens, c.journal] for c in self.contributions],
            [[p.included, p.digest] for p in self.parts],
            self.attendance,
            [r.tree() for r in self.records],
            [[v.peer, v.journal] for v in self.electorate],
            self.state,
        ]

    @classmethod
    def from_tree(cls, tree: Any) -> "Value":
        parent, number, tokens, contributions, parts, attendance, records, electorate, state = fields(tree, 9)
        value = cls(
            digest(parent),
            count(number),
            count(tokens),
            tuple(
                Contribution(check_peer_id(p), digest(r), count(t), exactly(j, JOURNAL_BYTES))
                for p, r, t, j in rows(contributions, 4, MAX_CONTRIBUTORS)
            ),
            tuple(PartResult(octets(i, MAX_CONTRIBUTORS // 8), digest(d)) for i, d in rows(parts, 2, MAX_PARTS)),
            octets(attendance, bitmap_bytes(MAX_ELECTORATE)),
            tuple(Record.from_fields(row) for row in rows(records, 5, MAX_RECORDS)),
            tuple(Voter(check_peer_id(p), exactly(j, JOURNAL_BYTES)) for p, j in rows(electorate, 2, MAX_ELECTORATE)),
            digest(state),
        )
        value._check()
        return value

    def _check(self) -> None:
        peers = [c.peer for c in self.contributions]
        if peers != sorted(set(peers)):
            raise MalformedError("a value's contributions are not in ascending peer order, each once")
        if any(c.tokens < 1 for c in self.contributions):
            raise MalformedError("a value lists a contribution of zero tokens")
        if [r.peer for r in self.records] != sorted({r.peer for r in self.records}):
            raise MalformedError("a value's records are not in ascending peer order, each peer once")
        if not self.electorate or len({v.peer for v in self.electorate}) != len(self.electorate):
            raise MalformedError("a value's electorate is empty or names a peer twice")
        width = bitmap_bytes(len(peers))
        spare = 8 * width - len(peers)
        for part in self.parts:
            if len(part.included) != width or (spare and part.included[-1] >> (8 - spare)):
                raise MalformedError("a part's bitmap does not fit the list of contributions")


def bitmap(included: "set[int] | frozenset[int]", size: int) -> bytes:
    """Little-endian bitmap of `size` bits."""
    return sum(1 << index for index in included).to_bytes(bitmap_bytes(size), "little")


def bitmap_bytes(size: int) -> int:
    return (size + 7) // 8


def round_tokens(contributions: tuple[Contribution, ...], parts: tuple[PartResult, ...], sizes: tuple[int, ...]) -> int:
    """Tokens that a round certifies (rule 10): over peers, floor(tokens x elements listed / elements)."""
    elements, total = sum(sizes), 0
    for index, contribution in enumerate(contributions):
        listed = sum(size for part, size in zip(parts, sizes, strict=True) if part.includes(index))
        total += contribution.tokens * listed // elements
    return total


@dataclass(frozen=True)
class Vote:
    """`peer`, under `journal`, accepts the value of this id in this ballot and holds every byte of its result."""

    parent: Digest
    ballot: int
    certificate: Digest
    peer: PeerId
    journal: bytes
    signature: bytes

    @classmethod
    def cast(cls, identity: Identity, journal: bytes, ballot: int, value: Value) -> "Vote":
        payload = cls._payload(value.parent, ballot, value.id, journal)
        return cls(value.parent, ballot, value.id, identity.peer_id, journal, identity.sign("vote", payload))

    def check(self) -> None:
        """Raises SignatureError."""
        _verify_vote(self)

    def payload(self) -> bytes:
        return self._payload(self.parent, self.ballot, self.certificate, self.journal)

    @staticmethod
    def _payload(parent: Digest, ballot: int, certificate: Digest, journal: bytes) -> bytes:
        return canonical.encode([parent, ballot, certificate, journal])


@functools.lru_cache(maxsize=16384)
def _verify_vote(vote: Vote) -> None:
    verify(vote.peer, "vote", vote.payload(), vote.signature)


@dataclass(frozen=True)
class Certificate:
    value: Value
    ballot: int
    votes: tuple[Vote, ...]

    @property
    def id(self) -> Digest:
        return self.value.id

    def tree(self) -> list[Any]:
        return [self.value.tree(), self.ballot, [[v.peer, v.journal, v.signature] for v in self.votes]]

    @classmethod
    def from_tree(cls, tree: Any) -> "Certificate":
        body, number, votes = fields(tree, 3)
        value, ballot = Value.from_tree(body), count(number, MAX_BALLOT)
        return cls(
            value,
            ballot,
            tuple(
                Vote(
                    value.parent,
                    ballot,
                    value.id,
                    check_peer_id(p),
                    exactly(j, JOURNAL_BYTES),
                    octets(s, SIGNATURE_BYTES),
                )
                for p, j, s in rows(votes, 3, MAX_ELECTORATE)
            ),
        )

    def encode(self) -> bytes:
        return canonical.encode(self.tree())

    @classmethod
    def decode(cls, data: bytes) -> "Certificate":
        return cls.from_tree(canonical.decode(data, limit=VALUE_LIMIT))
