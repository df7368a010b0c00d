"""A voter's memory on disk: what it promised and accepted, and its own contributions' roots, under a random id.

A vote counts only under the journal id that the electorate names (DESIGN rule 2), so a memory that may have lost
anything must not go on under its id. Every record is appended and fsynced before its save returns. On opening, a record
that the file ends within was never acknowledged: it is cut off. Anything else that does not check is damage: the file
is set aside for a person, and a new journal with a new id begins.

Decides nothing: which votes are allowed stands in `round.synod`, what may be forgotten in `round`. Saves may come from
several threads and follow one another. Used by the service, and by simulators.

    file    magic 8 | id 16 | check 16, then records
    record  length 4 | check of body 16 | check of these two 8 | body

Checks are BLAKE3, cut short, over the journal's id and the record's offset too: neither a record of another file nor
one that has moved is believed. The length has a check of its own, else a damaged one could pass for a torn tail.
"""

import logging
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.p2p import durable
from atoll.p2p.round.synod import Accepted, Acceptor
from atoll.protocol import canonical
from atoll.protocol.certificate import MAX_BALLOT, MAX_PARTS, VALUE_LIMIT, Contribution, Value
from atoll.protocol.digest import DIGEST_BYTES, Digest, content_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import check_peer_id
from atoll.protocol.read import count, digest, exactly, fields, octets
from atoll.protocol.standing import JOURNAL_BYTES

RECORD_LIMIT = VALUE_LIMIT + (1 << 16)
COMPACT_BYTES = 1 << 20  # a smaller file is not worth the work
COMPACT_FACTOR = 4  # nor is one of fewer times the bytes that are kept

_MAGIC = b"atoll\0j\1"
_HEADER = len(_MAGIC) + JOURNAL_BYTES + 16
_HEAD = 4 + 16 + 8
_FLOOR, _ACCEPTOR, _CONTRIBUTION = range(3)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnContribution:
    """What this peer contributes under a base, with the digests of its parts."""

    contribution: Contribution
    leaves: tuple[Digest, ...]


@dataclass
class _Memory:
    """What a journal file says, up to the byte `end`."""

    id: bytes
    end: int = _HEADER
    acceptors: dict[Digest, Acceptor] = field(default_factory=dict)
    contributions: dict[Digest, OwnContribution] = field(default_factory=dict)
    floor: frozenset[Digest] = frozenset()
    sizes: dict[tuple[int, Digest], int] = field(default_factory=dict)  # bytes of each record that still counts


class Journal:
    """Make one with `open`. Read `acceptors` and `contributions`; change them by saving and pruning only."""

    def __init__(self, path: Path, memory: _Memory, *, lost: bool) -> None:
        self.lost = lost
        self._lock = threading.Lock()
        self._path, self._descriptor, self._unsettled = path, -1, False
        self._take(memory)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Recover the journal at `path`, or begin one. `lost` says that a damaged one was set aside. Raises OSError."""
        durable.partial_of(path).unlink(missing_ok=True)  # a compaction that never ended: the old file has it all
        lost = False
        if path.exists():
            try:
                return cls(path, _read(path), lost=False)
            except MalformedError as error:
                _set_aside(path, str(error))
                lost = True
        return cls(path, _begin(path), lost=lost)

    @property
    def id(self) -> bytes:
        return self._memory.id

    @property
    def acceptors(self) -> dict[Digest, Acceptor]:
        """What this peer promised and accepted, by parent."""
        return self._memory.acceptors

    @property
    def contributions(self) -> dict[Digest, OwnContribution]:
        """What this peer contributed, by base."""
        return self._memory.contributions

    @property
    def floor(self) -> frozenset[Digest]:
        """Where the chain stood at the last prune, if older memory is gone from the file; empty if it has everything.

        A chain that does not know it is behind this journal (its log was damaged, or lost), and would meet parents
        again that the journal has forgotten: then `renew`.
        """
        return self._memory.floor

    def save_acceptor(self, parent: Digest, acceptor: Acceptor) -> None:
        """Durable when it returns. Raises OSError, and then nothing was saved."""
        with self._lock:
            self._append(_ACCEPTOR, parent, _acceptor_tree(parent, acceptor))
            self.acceptors[parent] = acceptor

    def save_contribution(self, base: Digest, own: OwnContribution) -> None:
        """Durable when it returns. Raises OSError, and then nothing was saved."""
        with self._lock:
            self._append(_CONTRIBUTION, base, _contribution_tree(base, own))
            self.contributions[base] = own

    def prune(self, keep: Collection[Digest], tip: Digest) -> None:
        """Forget all parents and bases but these; `tip` is where the chain stands now.

        Raises OSError; the file then has at least what is kept.
        """
        kept, memory = frozenset(keep), self._memory
        with self._lock:
            memory.acceptors = {parent: item for parent, item in memory.acceptors.items() if parent in kept}
            memory.contributions = {base: item for base, item in memory.contributions.items() if base in kept}
            memory.sizes = {key: size for key, size in memory.sizes.items() if key[1] in kept or key[0] == _FLOOR}
            memory.floor = frozenset({tip})
            self._compact_if_worth_it()

    def moving(self, tips: Collection[Digest]) -> None:
        """The chain is about to move from one of these places to another, and may be found at either. Raises OSError.

        Without this a journal whose older memory is gone would be taken for one that is ahead of the chain.
        """
        with self._lock:
            if (_FLOOR, b"") in self._memory.sizes:
                self._memory.floor = frozenset(tips)
                self._append(_FLOOR, b"", [_FLOOR, b"", b"".join(sorted(tips))])

    def renew(self) -> None:
        """Set this journal aside and begin an empty one under a new id: for a peer whose log has lost something."""
        self.close()
        _set_aside(self._path, "the log is behind it, so that it may have forgotten votes under parents yet to come")
        self.lost = True
        self._take(_begin(self._path))

    def close(self) -> None:
        """Nothing can be saved any more."""
        os.close(self._descriptor)
        self._descriptor = -1  # the number will be another file's

    def _take(self, memory: _Memory) -> None:
        self._memory = memory
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        # What a killed process wrote or renamed last may be in the page cache only, and is acted upon from here on.
        self._unsettled = True
        self._settle()

    def _append(self, kind: int, key: Digest, tree: list[Any]) -> None:
        body, memory = canonical.encode(tree), self._memory
        if len(body) > RECORD_LIMIT:
            raise MalformedError(f"a journal record of {len(body)} bytes, at most {RECORD_LIMIT} can be read back")
        self._compact_if_worth_it()
        self._settle()
        frame = _frame(memory.id, memory.end, body)
        try:
            durable.write_at(self._descriptor, frame, memory.end)
            os.fsync(self._descriptor)
        except BaseException:
            self._unsettled = True
            self._settle()
            raise
        memory.end += len(frame)
        memory.sizes[kind, key] = len(frame)

    def _settle(self) -> None:
        """Before anything is appended: no half record at the end, and the file's name is on the disk.

        Without the latter, a power cut after a compaction could bring the old file back, without what came later.
        """
        if self._unsettled:
            os.ftruncate(self._descriptor, self._memory.end)
            os.fsync(self._descriptor)
            durable.sync(self._path.parent)
            self._unsettled = False

    def _compact_if_worth_it(self) -> None:
        if self._memory.end > max(COMPACT_BYTES, COMPACT_FACTOR * sum(self._memory.sizes.values())):
            self._compact()

    def _compact(self) -> None:
        """Write what is kept to a new file and put it in the old one's place."""
        memory, data, sizes = self._memory, bytearray(_header(self.id)), {}
        for kind, key, tree in _trees(memory):
            frame = _frame(memory.id, len(data), canonical.encode(tree))
            data += frame
            sizes[kind, key] = len(frame)
        partial = durable.partial_of(self._path)
        with durable.new_file(partial) as file:
            file.write(data)
        descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        try:
            partial.rename(self._path)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._unsettled = descriptor, True
        memory.end, memory.sizes = len(data), sizes
        self._settle()


def _begin(path: Path) -> _Memory:
    memory = _Memory(os.urandom(JOURNAL_BYTES))
    durable.replace(path, _header(memory.id))
    return memory


def _set_aside(path: Path, reason: str) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    _log.warning("a voter's journal was set aside as %s, a new one begins: %s", aside, reason)


def _header(journal: bytes) -> bytes:
    return _MAGIC + journal + content_digest(_MAGIC + journal)[:16]


def _frame(journal: bytes, offset: int, body: bytes) -> bytes:
    place = journal + offset.to_bytes(8, "little")
    head = len(body).to_bytes(4, "little") + content_digest(place + body)[:16]
    return head + content_digest(place + head)[:8] + body


def _read(path: Path) -> _Memory:
    """All complete records. Raises MalformedError for anything but a torn end; OSError."""
    with path.open("rb") as file:
        header, size = file.read(_HEADER), os.fstat(file.fileno()).st_size
        memory = _Memory(header[len(_MAGIC) : -16])
        if header != _header(memory.id):
            raise MalformedError("its header is damaged")
        while size - memory.end >= _HEAD:
            head, place = file.read(_HEAD), memory.id + memory.end.to_bytes(8, "little")
            length = int.from_bytes(head[:4], "little")
            if content_digest(place + head[:20])[:8] != head[20:] or length > RECORD_LIMIT:
                raise MalformedError(f"the head of its record at byte {memory.end} is damaged")
            if length > size - memory.end - _HEAD:
                break
            body = file.read(length)
            if content_digest(place + body)[:16] != head[4:20]:
                raise MalformedError(f"its record at byte {memory.end} is damaged")
            _remember(memory, canonical.decode(body, limit=RECORD_LIMIT), _HEAD + length)
            memory.end += _HEAD + length
    return memory


def _trees(memory: _Memory) -> Iterator[tuple[int, Digest, list[Any]]]:
    yield _FLOOR, b"", [_FLOOR, b"", b"".join(sorted(memory.floor))]
    for parent, acceptor in memory.acceptors.items():
        yield _ACCEPTOR, parent, _acceptor_tree(parent, acceptor)
    for base, own in memory.contributions.items():
        yield _CONTRIBUTION, base, _contribution_tree(base, own)


def _remember(memory: _Memory, tree: Any, size: int) -> None:
    if not isinstance(tree, tuple) or len(tree) < 2:
        raise MalformedError("a journal record without a kind")
    kind, key = tree[0], tree[1]
    if kind == _FLOOR:
        memory.floor = frozenset(_digests(fields(tree, 3)[2]))
    elif kind == _ACCEPTOR:
        memory.acceptors[digest(key)] = _acceptor(tree)
    elif kind == _CONTRIBUTION:
        memory.contributions[digest(key)] = _contribution(tree)
    else:
        raise MalformedError("a journal record of an unknown kind")
    memory.sizes[kind, key] = size


def _acceptor_tree(parent: Digest, acceptor: Acceptor) -> list[Any]:
    accepted = None if acceptor.accepted is None else [acceptor.accepted[0], acceptor.accepted[1].tree()]
    return [_ACCEPTOR, parent, acceptor.promised, accepted, acceptor.left]


def _acceptor(tree: Any) -> Acceptor:
    _, _, promised, said, left = fields(tree, 5)
    accepted: Accepted | None = None
    if said is not None:
        ballot, value = fields(said, 2)
        accepted = count(ballot, MAX_BALLOT), Value.from_tree(value)
    if not isinstance(left, bool):
        raise MalformedError("a journal record that does not say whether its voter has left")
    return Acceptor(count(promised, MAX_BALLOT), accepted, left)


def _contribution_tree(base: Digest, own: OwnContribution) -> list[Any]:
    made = own.contribution
    return [_CONTRIBUTION, base, made.peer, made.root, made.tokens, made.journal, b"".join(own.leaves)]


def _contribution(tree: Any) -> OwnContribution:
    _, _, peer, root, tokens, journal, leaves = fields(tree, 7)
    made = Contribution(check_peer_id(peer), digest(root), count(tokens), exactly(journal, JOURNAL_BYTES))
    return OwnContribution(made, _digests(leaves))


def _digests(item: Any) -> tuple[Digest, ...]:
    data = octets(item, DIGEST_BYTES * MAX_PARTS)
    if len(data) % DIGEST_BYTES:
        raise MalformedError("a list of digests with a part of one")
    return tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))
