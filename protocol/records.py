"""Records: the small signed entries that peers leave in the DHT, where anybody may write and nobody is believed.

A `PeerRecord` says "I am this peer, in this run, reachable there, until then". It is sealed in an Ed25519 envelope of
the domain `record` and lives under (`record_key(run_id)`, `peer_name(peer_id)`): key and subkey follow from what was
signed, so that a valid record can neither be kept under another name nor multiply under invented keys.
Knows no network and no clock: the caller says what time it is. Used by every `RecordStore` (on store and on read) and
by the service that publishes and collects records.
"""

import math
from dataclasses import dataclass
from typing import Any

from atoll.protocol import canonical
from atoll.protocol.digest import DIGEST_BYTES
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, check_peer_id, peer_name, verify

RECORD_LIMIT = 4096
MAX_ADDRESSES = 16
MAX_ADDRESS_BYTES = 256
MAX_LIFETIME_S = 86_400.0
MAX_SEQUENCE = 1 << 62
_DOMAIN = "record"
_VERSION = 1


@dataclass(frozen=True)
class PeerRecord:
    """What one peer says of itself. A record with a higher `sequence` replaces those before it."""

    peer_id: PeerId
    run_id: bytes
    addresses: tuple[str, ...]  # multiaddrs with or without /p2p/ID
    trains: bool  # False: a bootstrap and relay node
    sequence: int  # grows with every record of this peer, across restarts too (unix milliseconds do)
    expires_s: float  # unix time

    def __post_init__(self) -> None:
        _check_bounds(self)

    @property
    def key(self) -> str:
        return record_key(self.run_id)

    @property
    def subkey(self) -> str:
        return peer_name(self.peer_id)

    def seal(self, identity: Identity) -> bytes:
        """The signed bytes to store. Raises SignatureError if `identity` is not the peer that the record speaks of,
        MalformedError if the whole would be larger than `RECORD_LIMIT`.
        """
        if identity.peer_id != self.peer_id:
            raise SignatureError(f"{identity} cannot sign a record of {self.subkey}: only the peer itself can.")
        payload = canonical.encode(self._tree())
        sealed = canonical.encode([payload, identity.sign(_DOMAIN, payload)])
        if len(sealed) > RECORD_LIMIT:
            raise MalformedError(f"a record of {len(sealed)} bytes, at most {RECORD_LIMIT} fit: name fewer addresses.")
        return sealed

    def _tree(self) -> list[Any]:
        return [_VERSION, self.peer_id, self.run_id, list(self.addresses), self.trains, self.sequence, self.expires_s]


def record_key(run_id: bytes) -> str:
    """The DHT key of a run's peer records."""
    return f"atoll/1/peers/{run_id.hex()}"


def open_record(
    data: bytes,
    *,
    subkey: str | None,
    now_s: float,
    run_id: bytes | None = None,
    grace_s: float = 0.0,
) -> PeerRecord:
    """The record behind sealed bytes that a stranger sent.

    `subkey` is the name it was found under, `run_id` the run it was looked up for (None: any; a node that stores for
    others cannot know). `grace_s` tolerates records that expired this long ago. Raises MalformedError for bytes that
    are no record, are expired or promise to live longer than `MAX_LIFETIME_S`, and SignatureError for a signer that is
    not the one required.
    """
    outer = canonical.decode(data, limit=RECORD_LIMIT)
    if not (isinstance(outer, tuple) and len(outer) == 2 and all(isinstance(part, bytes) for part in outer)):
        raise MalformedError("these bytes are not a sealed record")
    payload, signature = outer
    record = _read(canonical.decode(payload, limit=RECORD_LIMIT))
    if len(signature) != SIGNATURE_BYTES:
        raise MalformedError("the record carries no signature")
    if subkey is not None and subkey != record.subkey:
        raise SignatureError(f"a record of {record.subkey} was stored in the name of {subkey[:80]!r}")
    if run_id is not None and run_id != record.run_id:
        raise MalformedError(f"a record of the run {record.run_id.hex()[:16]}, not of {run_id.hex()[:16]}")
    if record.expires_s <= now_s - grace_s:
        raise MalformedError(f"the record of {record.subkey} expired {now_s - record.expires_s:.0f} s ago")
    if record.expires_s > now_s + MAX_LIFETIME_S + grace_s:
        raise MalformedError(f"the record of {record.subkey} claims to live longer than {MAX_LIFETIME_S:.0f} s")
    verify(record.peer_id, _DOMAIN, payload, signature)
    return record


def _read(tree: Any) -> PeerRecord:
    if not (isinstance(tree, tuple) and len(tree) == 7 and type(tree[0]) is int and tree[0] == _VERSION):
        raise MalformedError("not a peer record of this version")
    _, peer_id, run_id, addresses, trains, sequence, expires_s = tree
    if not isinstance(addresses, tuple):
        raise MalformedError("a peer record whose addresses are no list")
    return PeerRecord(peer_id, run_id, addresses, trains, sequence, expires_s)


def _check_bounds(record: PeerRecord) -> None:
    check_peer_id(record.peer_id)
    if not isinstance(record.run_id, bytes) or len(record.run_id) != DIGEST_BYTES:
        raise MalformedError("a peer record without a run_id")
    if len(record.addresses) > MAX_ADDRESSES:
        raise MalformedError(f"a peer record with {len(record.addresses)} addresses where {MAX_ADDRESSES} are allowed")
    for address in record.addresses:
        # Printable first: a lone surrogate is not, and would not encode.
        printable = isinstance(address, str) and address.isprintable()
        if not printable or not 0 < len(address.encode()) <= MAX_ADDRESS_BYTES:
            raise MalformedError(f"a peer record with an address that is no text of 1 to {MAX_ADDRESS_BYTES} bytes")
    if not isinstance(record.trains, bool):
        raise MalformedError("a peer record whose `trains` is neither true nor false")
    if type(record.sequence) is not int or not 0 <= record.sequence < MAX_SEQUENCE:  # a bool is an int, and not meant
        raise MalformedError("a peer record whose sequence number is out of bounds")
    if not isinstance(record.expires_s, float) or not math.isfinite(record.expires_s):
        raise MalformedError("a peer record without an expiry date")
