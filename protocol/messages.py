"""The nine messages of the round: READY START BLOB GET PREPARE PROMISE PROPOSE VOTE CERT.

All but BLOB and GET travel in a signed envelope that binds them to the run and to their sender; BLOB and GET are
content-addressed and need no belief. Decoding checks every bound before it builds anything. What a message *does*
stands in `atoll.p2p.round`.
"""

import enum
from dataclasses import dataclass
from typing import Any, ClassVar

from atoll.protocol import canonical
from atoll.protocol.certificate import MAX_BALLOT, MAX_PARTS, VALUE_LIMIT, Certificate, Value, Vote
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.fork import NONCE_BYTES, Fork, LastPromise, Rank
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, check_peer_id, verify
from atoll.protocol.manifest import MAX_CONTRIBUTORS
from atoll.protocol.read import count, digest, exactly, fields, octets, rows
from atoll.protocol.standing import JOURNAL_BYTES, Record, Standing

MESSAGE_LIMIT = VALUE_LIMIT + (1 << 16)
MAX_MILLISECONDS = 1 << 40


@dataclass(frozen=True)
class Ready:
    """Periodic signed status: heartbeat, progress, announcement of a contribution, and goodbye."""

    kind: ClassVar[int] = 1
    tip: Digest  # where the sender is: the certificate whose state it holds, or a FORK behind it
    base: Digest  # the nearest certificate, which contributions and records belong to
    round: int
    phase: str  # for people
    inner_step: int
    trains: bool  # a trainer is running behind this peer
    rate_bps: int  # measured upload, bytes per second; 0 when not measured yet
    journal: bytes
    root: Digest | None  # the sender's contribution under `base`, once it is fixed
    tokens: int  # of the contribution; before that, of the steps taken so far
    record: Record | None = None  # what it wants from the electorate, under `base`

    @property
    def leaving(self) -> bool:
        return self.record is not None and self.record.kind is Standing.LEAVE

    def tree(self) -> list[Any]:
        return [
            self.tip,
            self.base,
            self.round,
            self.phase,
            self.inner_step,
            self.trains,
            self.rate_bps,
            self.journal,
            self.root,
            self.tokens,
            None if self.record is None else self.record.tree(),
        ]

    @classmethod
    def from_tree(cls, tree: Any) -> "Ready":
        tip, base, number, phase, step, trains, rate, journal, root, tokens, record = fields(tree, 11)
        if not isinstance(phase, str) or len(phase) > 16 or not isinstance(trains, bool):
            raise MalformedError("READY with a field of the wrong type")
        return cls(
            digest(tip),
            digest(base),
            count(number),
            phase,
            count(step),
            trains,
            count(rate),
            exactly(journal, JOURNAL_BYTES),
            None if root is None else digest(root),
            count(tokens),
            None if record is None else Record.from_fields(fields(record, 5)),
        )


@dataclass(frozen=True)
class Start:
    """The leader of `ballot` closes the round: who is expected, who reduces which parts, how long to wait.

    Only schedules work. `owners` is run-length coded: (index into members, number of consecutive parts).
    A later `attempt` of the same ballot moves the parts of owners that went away.
    """

    kind: ClassVar[int] = 2
    parent: Digest
    ballot: int
    attempt: int
    members: tuple[PeerId, ...]
    owners: tuple[tuple[int, int], ...]
    grace_ms: int

    def tree(self) -> list[Any]:
        return [
            self.parent,
            self.ballot,
            self.attempt,
            list(self.members),
            [list(run) for run in self.owners],
            self.grace_ms,
        ]

    @classmethod
    def from_tree(cls, tree: Any) -> "Start":
        parent, ballot, attempt, members, owners, grace = fields(tree, 6)
        if not isinstance(members, tuple) or not 1 <= len(members) <= MAX_CONTRIBUTORS:
            raise MalformedError("START without members, or with too many")
        names = tuple(check_peer_id(m) for m in members)
        if list(names) != sorted(set(names)):
            raise MalformedError("START's members are not in ascending peer order, each once")
        runs = tuple((count(i, len(names) - 1), count(n, MAX_PARTS)) for i, n in rows(owners, 2, MAX_PARTS))
        return cls(
            digest(parent),
            count(ballot, MAX_BALLOT),
            count(attempt, MAX_BALLOT),
            names,
            runs,
            count(grace, MAX_MILLISECONDS),
        )

    def owner_of(self, parts: int) -> tuple[PeerId, ...]:
        """Owner of each part. Raises MalformedError unless the runs cover exactly `parts` parts."""
        if sum(length for _, length in self.owners) != parts:
            raise MalformedError(f"START assigns {sum(n for _, n in self.owners)} parts, the run has {parts}")
        return tuple(self.members[index] for index, length in self.owners for _ in range(length))


class BlobKind(enum.IntEnum):
    MANIFEST = 1  # under the run_id
    TOKENIZER = 2
    CHUNKS = 3  # list of an outer state's chunk digests, under its state digest
    CHUNK = 4  # one chunk of an outer state
    LEAVES = 5  # list of a contribution's part digests, under its root
    PART = 6  # one part of a contribution
    RESULT = 7  # the average of one part
    LINK = 8  # a certificate or FORK under its id; answered by CERT


@dataclass(frozen=True)
class Blob:
    """Header of content-addressed bytes; the payload follows on the wire. `size` is None when a GET finds nothing."""

    kind: ClassVar[int] = 3
    content: BlobKind
    digest: Digest
    size: int | None
    parent: Digest | None = None  # PART, LEAVES, RESULT: the round it belongs to
    peer: PeerId | None = None  # PART, LEAVES: whose contribution
    root: Digest | None = None  # PART: of that contribution
    part: int = 0  # PART, RESULT
    roots: tuple[Digest, ...] = ()  # RESULT: the contributions in it, in ascending peer order
    wanted: bool = False  # an answer to GET

    def tree(self) -> list[Any]:
        return [
            int(self.content),
            self.digest,
            self.size,
            self.parent,
            self.peer,
            self.root,
            self.part,
            list(self.roots),
            self.wanted,
        ]

    @classmethod
    def from_tree(cls, tree: Any) -> "Blob":
        content, name, size, parent, peer, root, part, roots, wanted = fields(tree, 9)
        if (
            count(content) not in BlobKind._value2member_map_
            or not isinstance(roots, tuple)
            or len(roots) > MAX_CONTRIBUTORS
            or not isinstance(wanted, bool)
        ):
            raise MalformedError("BLOB with a field of the wrong type")
        return cls(
            BlobKind(content),
            digest(name),
            None if size is None else count(size),
            None if parent is None else digest(parent),
            None if peer is None else check_peer_id(peer),
            None if root is None else digest(root),
            count(part, MAX_PARTS),
            tuple(digest(r) for r in roots),
            wanted,
        )


@dataclass(frozen=True)
class Get:
    kind: ClassVar[int] = 4
    content: BlobKind
    digest: Digest

    def tree(self) -> list[Any]:
        return [int(self.content), self.digest]

    @classmethod
    def from_tree(cls, tree: Any) -> "Get":
        content, name = fields(tree, 2)
        if count(content) not in BlobKind._value2member_map_:
            raise MalformedError("GET of an unknown kind of blob")
        return cls(BlobKind(content), digest(name))


@dataclass(frozen=True)
class Prepare:
    """Asks for promises for `ballot`; with a `nonce`, for the last promise under this parent (DESIGN rule 6)."""

    kind: ClassVar[int] = 5
    parent: Digest
    ballot: int
    nonce: bytes | None = None
    rank: Rank = Rank.VOTERS

    def tree(self) -> list[Any]:
        return [self.parent, self.ballot, self.nonce, int(self.rank)]

    @classmethod
    def from_tree(cls, tree: Any) -> "Prepare":
        parent, ballot, nonce, rank = fields(tree, 4)
        return cls(digest(parent), count(ballot, MAX_BALLOT), None if nonce is None else exactly(nonce, NONCE_BYTES),
                   Rank.read(rank))


@dataclass(frozen=True)
class Promise:
    """The sender votes in no ballot below `ballot`, or, with `last`, never again under this parent.

    `accepted` is what it accepted in the highest ballot so far.
    """

    kind: ClassVar[int] = 6
    parent: Digest
    ballot: int
    journal: bytes
    accepted: tuple[int, Value] | None
    last: LastPromise | None = None

    def tree(self) -> list[Any]:
        return [
            self.parent,
            self.ballot,
            self.journal,
            None if self.accepted is None else [self.accepted[0], self.accepted[1].tree()],
            None if self.last is None else self.last.tree(),
        ]

    @classmethod
    def from_tree(cls, tree: Any) -> "Promise":
        parent, ballot, journal, accepted, last = fields(tree, 5)
        promise = None if last is None else LastPromise.from_fields(fields(last, 7))
        if accepted is not None:
            number, value = fields(accepted, 2)
            accepted = count(number, MAX_BALLOT), Value.from_tree(value)
            below = promise is not None or accepted[0] < count(ballot, MAX_BALLOT)
            if accepted[1].parent != parent or not below:
                raise MalformedError("PROMISE with a value of another parent, or of a ballot that is not below its own")
        if promise is not None and (promise.parent != parent or promise.journal != journal or promise.accepted
                                    != (None if accepted is None else (accepted[0], accepted[1].id))):
            raise MalformedError("PROMISE whose last promise says something else")
        return cls(digest(parent), count(ballot, MAX_BALLOT), exactly(journal, JOURNAL_BYTES), accepted, promise)


@dataclass(frozen=True)
class Propose:
    kind: ClassVar[int] = 7
    ballot: int
    value: Value
    carried: bool = False  # a promise bound the leader to this value: it was accepted in a lower ballot

    @property
    def parent(self) -> Digest:
        return self.value.parent

    def tree(self) -> list[Any]:
        return [self.ballot, self.value.tree(), self.carried]

    @classmethod
    def from_tree(cls, tree: Any) -> "Propose":
        ballot, value, carried = fields(tree, 3)
        if not isinstance(carried, bool) or (carried and ballot == 0):
            raise MalformedError("PROMISE binds no leader before ballot 1")
        return cls(count(ballot, MAX_BALLOT), Value.from_tree(value), carried)


@dataclass(frozen=True)
class Voted:
    """The message VOTE: a vote, with the signature that goes into the certificate; whoever has it may pass it on."""

    kind: ClassVar[int] = 8
    vote: Vote

    @property
    def parent(self) -> Digest:
        return self.vote.parent

    def tree(self) -> list[Any]:
        v = self.vote
        return [v.parent, v.ballot, v.certificate, v.peer, v.journal, v.signature]

    @classmethod
    def from_tree(cls, tree: Any) -> "Voted":
        parent, ballot, certificate, peer, journal, signature = fields(tree, 6)
        return cls(
            Vote(
                digest(parent),
                count(ballot, MAX_BALLOT),
                digest(certificate),
                check_peer_id(peer),
                exactly(journal, JOURNAL_BYTES),
                octets(signature, SIGNATURE_BYTES),
            )
        )


@dataclass(frozen=True)
class Cert:
    """Answers any message whose parent has a certified child whose state the sender holds; carries FORK, too."""

    kind: ClassVar[int] = 9
    link: Certificate | Fork

    def tree(self) -> list[Any]:
        return [isinstance(self.link, Fork), self.link.tree()]

    @classmethod
    def from_tree(cls, tree: Any) -> "Cert":
        is_fork, body = fields(tree, 2)
        if not isinstance(is_fork, bool):
            raise MalformedError("CERT with neither a certificate nor a FORK")
        return cls(Fork.from_tree(body) if is_fork else Certificate.from_tree(body))


Message = Ready | Start | Blob | Get | Prepare | Promise | Propose | Voted | Cert
_KINDS: dict[int, Any] = {c.kind: c for c in (Ready, Start, Blob, Get, Prepare, Promise, Propose, Voted, Cert)}
_UNSIGNED = (Blob, Get)


def seal(message: Message, run_id: Digest, identity: Identity) -> bytes:
    """The bytes of a message; signed in the sender's name, bound to the run, unless it is content-addressed."""
    body = canonical.encode(message.tree())
    if isinstance(message, _UNSIGNED):
        return canonical.encode([message.kind, body, b""])
    return canonical.encode([message.kind, body, identity.sign("message", _payload(run_id, message.kind, body))])


def unseal(data: bytes, run_id: Digest, sender: PeerId) -> Message:
    """The message that `sender` sealed for this run. Raises MalformedError or SignatureError."""
    kind, body, signature = fields(canonical.decode(data, limit=MESSAGE_LIMIT), 3)
    shape = _KINDS.get(kind) if isinstance(kind, int) else None
    if shape is None or not isinstance(body, bytes) or not isinstance(signature, bytes):
        raise MalformedError("not one of the nine messages")
    if shape not in _UNSIGNED:
        verify(sender, "message", _payload(run_id, kind, body), signature)
    message: Message = shape.from_tree(canonical.decode(body, limit=MESSAGE_LIMIT))
    if isinstance(message, Promise) and message.last is not None and message.last.peer != sender:
        raise MalformedError("PROMISE in another peer's name")
    if isinstance(message, Ready) and message.record is not None and message.record.peer != sender:
        raise MalformedError("READY with another peer's record")
    return message


def _payload(run_id: Digest, kind: int, body: bytes) -> bytes:
    return run_id + bytes([kind]) + body
