"""What a peer wants from the electorate, signed: to vote under a journal, to leave, or that it cannot vote.

A record is bound to a base, the nearest certificate, so that none can be played again later. The owner of a run may
sign a ticket for a peer, which admits it at once. What a record changes is computed in `atoll.p2p.round.electorate`.
"""

import enum
import functools
from dataclasses import dataclass
from typing import Any

from atoll.protocol import canonical
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, check_peer_id, verify
from atoll.protocol.read import count, exactly, octets

JOURNAL_BYTES = 16


class Standing(enum.IntEnum):
    VOTER = 0  # nothing to change: an elector under the journal it has, or a contributor that does not want to vote
    JOIN = 1  # wants to vote under the journal it names: a newcomer, or an elector whose journal is new
    LEAVE = 2  # goes away, for good or for now
    CANNOT_VOTE = 3  # goes on contributing, but cannot hold what a vote vouches for


@dataclass(frozen=True, order=True)
class Record:
    """`peer`'s signed wish under `base`. `ticket` is the owner's signature for a JOIN, or empty."""

    peer: PeerId
    kind: Standing
    journal: bytes
    ticket: bytes
    signature: bytes

    @classmethod
    def sign(cls, identity: Identity, base: Digest, kind: Standing, journal: bytes, ticket: bytes = b"") -> "Record":
        signature = identity.sign("standing", _payload(base, kind, journal))
        return cls(identity.peer_id, kind, journal, ticket, signature)

    def check(self, base: Digest) -> None:
        """Raises SignatureError unless `peer` signed this under `base`."""
        _verify(self.peer, _payload(base, self.kind, self.journal), self.signature)

    def has_ticket(self, run_id: Digest, owner: PeerId) -> bool:
        """Whether the run's owner signed for this peer. Raises SignatureError for a ticket that is not the owner's."""
        if not self.ticket:
            return False
        check_ticket(owner, run_id, self.peer, self.ticket)
        return True

    def tree(self) -> list[Any]:
        return [self.peer, int(self.kind), self.journal, self.ticket, self.signature]

    @classmethod
    def from_fields(cls, row: tuple[Any, ...]) -> "Record":
        peer, kind, journal, ticket, signature = row
        if count(kind) not in Standing._value2member_map_ or kind == Standing.VOTER:
            raise MalformedError("a record of an unknown kind")
        return cls(check_peer_id(peer), Standing(kind), exactly(journal, JOURNAL_BYTES),
                   octets(ticket, SIGNATURE_BYTES), octets(signature, SIGNATURE_BYTES))


def sign_ticket(owner: Identity, run_id: Digest, peer: PeerId) -> bytes:
    """The owner's leave for `peer` to vote in this run without having contributed before."""
    return owner.sign("ticket", run_id + peer)


def check_ticket(owner: PeerId, run_id: Digest, peer: PeerId, ticket: bytes) -> None:
    """Raises SignatureError unless `owner` signed this ticket for `peer`."""
    _verify_ticket(owner, run_id + peer, ticket)


def _payload(base: Digest, kind: Standing, journal: bytes) -> bytes:
    return canonical.encode([base, int(kind), journal])


@functools.lru_cache(maxsize=4096)
def _verify(peer: PeerId, payload: bytes, signature: bytes) -> None:
    verify(peer, "standing", payload, signature)


@functools.lru_cache(maxsize=4096)
def _verify_ticket(owner: PeerId, payload: bytes, signature: bytes) -> None:
    verify(owner, "ticket", payload, signature)
