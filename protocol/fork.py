"""FORK: what survivors agree on when the quorum under a parent is gone (DESIGN rule 6).

A *last promise* means that its signer never votes under this parent again. The last promises that answer one
initiator's PREPARE are the FORK record: it names the survivors, its id covers what they said and not their signatures,
and it is the parent of their next certificate. What they accepted before is evidence that a value may have been
certified: the one of the highest ballot travels with the record, and the survivors certify its outcome first.
"""

import enum
import functools
from dataclasses import dataclass
from typing import Any

from atoll.protocol import canonical
from atoll.protocol.certificate import MAX_BALLOT, Value
from atoll.protocol.digest import Digest, tree_digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, check_peer_id, verify
from atoll.protocol.manifest import MAX_CONTRIBUTORS
from atoll.protocol.read import count, digest, exactly, fields, octets, rows
from atoll.protocol.standing import JOURNAL_BYTES

NONCE_BYTES = 16


class Rank(enum.IntEnum):
    """Who signs a FORK; a lower rank is preferred."""

    VOTERS = 1  # of the electorate that the parent names, under whatever journal
    CONTRIBUTORS = 2  # named in one of the last K certificates
    HOLDERS = 3  # any peers that hold the parent's state; not at genesis

    @classmethod
    def read(cls, item: Any) -> "Rank":
        if count(item) not in cls._value2member_map_:
            raise MalformedError("a FORK of an unknown rank")
        return cls(item)


@dataclass(frozen=True)
class LastPromise:
    """`peer` never votes under `parent` again; `accepted` is (ballot, value id) of what it accepted last, if anything.

    That is evidence only if `journal` is the one that the parent names for the peer: another journal has forgotten.
    """

    parent: Digest
    nonce: bytes
    rank: Rank
    peer: PeerId
    journal: bytes
    accepted: tuple[int, Digest] | None
    signature: bytes

    @classmethod
    def sign(
        cls, identity: Identity, parent: Digest, nonce: bytes, rank: Rank, journal: bytes,
        accepted: tuple[int, Digest] | None,
    ) -> "LastPromise":
        payload = cls._payload(parent, nonce, rank, journal, accepted)
        signature = identity.sign("last promise", payload)
        return cls(parent, nonce, rank, identity.peer_id, journal, accepted, signature)

    def check(self) -> None:
        """Raises SignatureError."""
        _verify(self)

    def payload(self) -> bytes:
        return self._payload(self.parent, self.nonce, self.rank, self.journal, self.accepted)

    @staticmethod
    def _payload(
        parent: Digest, nonce: bytes, rank: Rank, journal: bytes, accepted: tuple[int, Digest] | None,
    ) -> bytes:
        said = None if accepted is None else [accepted[0], accepted[1]]
        return canonical.encode([parent, nonce, int(rank), journal, said])

    def tree(self) -> list[Any]:
        said = None if self.accepted is None else list(self.accepted)
        return [self.parent, self.nonce, int(self.rank), self.peer, self.journal, said, self.signature]

    @classmethod
    def from_fields(cls, row: tuple[Any, ...]) -> "LastPromise":
        parent, nonce, rank, peer, journal, said, signature = row
        if said is not None:
            ballot, value = fields(said, 2)
            said = count(ballot, MAX_BALLOT), digest(value)
        return cls(digest(parent), exactly(nonce, NONCE_BYTES), Rank.read(rank), check_peer_id(peer),
                   exactly(journal, JOURNAL_BYTES), said, octets(signature, SIGNATURE_BYTES))


@functools.lru_cache(maxsize=4096)
def _verify(promise: LastPromise) -> None:
    verify(promise.peer, "last promise", promise.payload(), promise.signature)


@dataclass(frozen=True)
class Fork:
    """The promises that arrived in the initiator's window, ascending by peer, and the value that is evidence."""

    parent: Digest
    nonce: bytes
    rank: Rank
    promises: tuple[LastPromise, ...]
    value: Value | None

    @functools.cached_property
    def id(self) -> Digest:
        said = [[p.peer, p.journal, None if p.accepted is None else list(p.accepted)] for p in self.promises]
        return tree_digest("fork", [self.parent, self.nonce, int(self.rank), said])

    @property
    def signers(self) -> tuple[PeerId, ...]:
        return tuple(promise.peer for promise in self.promises)

    def tree(self) -> list[Any]:
        value = None if self.value is None else self.value.tree()
        return [self.parent, self.nonce, int(self.rank), [p.tree() for p in self.promises], value]

    @classmethod
    def from_tree(cls, tree: Any) -> "Fork":
        parent, nonce, rank, promises, value = fields(tree, 5)
        signed = tuple(LastPromise.from_fields(row) for row in rows(promises, 7, MAX_CONTRIBUTORS))
        fork = cls(digest(parent), exactly(nonce, NONCE_BYTES), Rank.read(rank), signed,
                   None if value is None else Value.from_tree(value))
        fork.check_form()
        return fork

    def check_form(self) -> None:
        """What needs no knowledge of the chain. Raises MalformedError."""
        if not self.promises or list(self.signers) != sorted(set(self.signers)):
            raise MalformedError("a FORK's promises are not in ascending peer order, each once")
        if any((p.parent, p.nonce, p.rank) != (self.parent, self.nonce, self.rank) for p in self.promises):
            raise MalformedError("a FORK with a promise for another one")
        if self.value is not None and self.value.parent != self.parent:
            raise MalformedError("a FORK with a value of another parent")
