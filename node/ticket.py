"""A ticket: one word with which a run's owner lets a peer vote at once, without having contributed before.

`atollticket1` and then base58 of: version, run_id, the peer's key, the owner's signature, 4 bytes of SHA-256. It is
good for that peer in that run alone, so it is no secret. What it does in a round stands in `atoll.protocol.standing`.
`atoll run admit` makes one, `atoll up --ticket` takes it.
"""

import hashlib
from dataclasses import dataclass

from atoll.node import base58
from atoll.node.errors import UsageError
from atoll.protocol.errors import SignatureError
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, peer_name
from atoll.protocol.manifest import Manifest
from atoll.protocol.standing import check_ticket, sign_ticket

PREFIX = "atollticket1"
MAX_TEXT = 512
_VERSION = 1
_RUN_ID_BYTES = 32
_CHECK_BYTES = 4
_KEY_PREFIX = b"\x00\x24\x08\x01\x12\x20"
_KEY_BYTES = 32
_BODY_BYTES = 1 + _RUN_ID_BYTES + _KEY_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True)
class Ticket:
    run_id: bytes
    peer: PeerId
    signature: bytes

    @classmethod
    def issue(cls, owner: Identity, manifest: Manifest, peer: PeerId) -> "Ticket":
        """Raises UsageError unless `owner` is the run's."""
        if owner.peer_id != manifest.owner:
            raise UsageError(
                f"the run's owner is {peer_name(manifest.owner)}, but this home's key is {peer_name(owner.peer_id)}: "
                "only the owner's --home can admit."
            )
        return cls(manifest.run_id, peer, sign_ticket(owner, manifest.run_id, peer))

    @property
    def word(self) -> str:
        body = bytes([_VERSION]) + self.run_id + self.peer.removeprefix(_KEY_PREFIX) + self.signature
        return PREFIX + base58.encode(body + _checksum(body))

    def check(self, run_id: bytes, peer: PeerId, owner: PeerId | None) -> None:
        """Raise UsageError unless this lets `peer` vote in that run. `owner` is None while no manifest is held."""
        if self.run_id != run_id:
            raise UsageError(
                f"the ticket is for the run {self.run_id.hex()[:16]}, and this home is on {run_id.hex()[:16]}: "
                "give that run with --run, or ask its owner for a ticket for this one."
            )
        if self.peer != peer:
            raise UsageError(
                f"the ticket is for {peer_name(self.peer)}, and this home's key is {peer_name(peer)}: "
                "ask the run's owner for one with this home's id (`atoll id`)."
            )
        if owner is not None:
            try:
                check_ticket(owner, run_id, peer, self.signature)
            except SignatureError as error:
                raise UsageError(
                    f"the ticket is not signed by the run's owner, {peer_name(owner)}: ask them for another one."
                ) from error


def parse_ticket(text: str) -> Ticket:
    """Raises UsageError in one sentence. White space, as of a wrapped line, does not matter."""
    word = "".join(text.split())
    if not word.startswith(PREFIX) or len(word) > MAX_TEXT:
        shown = repr(word[:60])[:80]
        raise UsageError(f"{shown} is no ticket ({PREFIX}…): paste the word that `atoll run admit` printed.")
    try:
        data = base58.decode(word.removeprefix(PREFIX))
    except KeyError as error:
        raise UsageError(f"the ticket holds {error.args[0]!r}, which no ticket does: paste it again, whole.") from error
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if not body or _checksum(body) != check:
        raise UsageError("the ticket is damaged, a letter is missing or wrong: paste it again, whole.")
    if body[0] != _VERSION or len(body) != _BODY_BYTES:
        raise UsageError(f"the ticket is of version {body[0]}, this program knows {_VERSION}: upgrade atoll.")
    run_id, rest = body[1 : 1 + _RUN_ID_BYTES], body[1 + _RUN_ID_BYTES :]
    return Ticket(run_id, _KEY_PREFIX + rest[:_KEY_BYTES], rest[_KEY_BYTES:])


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"atoll ticket" + body).digest()[:_CHECK_BYTES]
