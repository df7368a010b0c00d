"""An invite: one word that a person can paste, with all that a newcomer needs to find a run.

`atoll1` and then base58 of: version, run_id, number of addresses, addresses, 4 bytes of SHA-256. The usual addresses
(IP, TCP or QUIC, a PeerID) take 39 bytes, all others their text. The invite is no secret and proves nothing: manifest
and genesis are verified against its run_id.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from atoll.node import base58
from atoll.node.errors import InviteError
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import parse_peer, peer_name

PREFIX = "atoll1"
MAX_ADDRESSES = 8
_VERSION = 1
_RUN_ID_BYTES = 32
_CHECK_BYTES = 4
_KEY_PREFIX = b"\x00\x24\x08\x01\x12\x20"
_MAX_TEXT = 4096
_KINDS = (("ip4", "tcp"), ("ip4", "quic"), ("ip6", "tcp"), ("ip6", "quic"))
_TEXT_KIND = 255
_HOST_BYTES = {"ip4": 4, "ip6": 16}


@dataclass(frozen=True)
class Invite:
    run_id: bytes
    addresses: tuple[str, ...]  # multiaddrs with /p2p/ID, best first


def format_invite(run_id: bytes, addresses: Sequence[str]) -> str:
    """The word. At most MAX_ADDRESSES are taken, in order. Raises InviteError without any."""
    chosen = list(dict.fromkeys(addresses))[:MAX_ADDRESSES]
    if not chosen:
        raise InviteError("nobody could be dialled with this invite: no address of a live peer is known yet.")
    body = bytes([_VERSION]) + run_id + bytes([len(chosen)]) + b"".join(_pack(address) for address in chosen)
    return PREFIX + base58.encode(body + _checksum(body))


def parse_invite(text: str) -> Invite:
    """Raises InviteError in one sentence. White space, as of a wrapped line, does not matter."""
    word = "".join(text.split())
    if not word.startswith(PREFIX):
        raise InviteError(f"{_shown(text)} is neither a manifest file nor an invite ({PREFIX}…).")
    if len(word) > _MAX_TEXT:
        raise InviteError(f"an invite of {len(word)} letters is too long: paste it again, once.")
    try:
        data = base58.decode(word.removeprefix(PREFIX))
    except KeyError as error:
        letter = error.args[0]
        raise InviteError(f"the invite holds {letter!r}, which no invite does: paste it again, whole.") from error
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(body) < 2 + _RUN_ID_BYTES or _checksum(body) != check:
        raise InviteError("the invite is damaged, a letter is missing or wrong: paste it again, whole.")
    if body[0] != _VERSION:
        raise InviteError(f"the invite is of version {body[0]}, this program knows {_VERSION}: upgrade atoll.")
    try:
        return Invite(body[1:1 + _RUN_ID_BYTES], _unpack_all(body[1 + _RUN_ID_BYTES:]))
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise InviteError("the invite holds addresses that cannot be read: ask for another one.") from error


def _pack(address: str) -> bytes:
    parts = address.split("/")
    try:
        _, family, host, _, port = parts[:5]
        transport = "quic" if parts[3] == "udp" and parts[5] == "quic-v1" else "tcp"
        peer = parse_peer(parts[-1])
        packed = (
            bytes([_KINDS.index((family, transport))]) + ipaddress.ip_address(host).packed
            + int(port).to_bytes(2, "big") + peer.removeprefix(_KEY_PREFIX)
        )
        if _unpack(packed)[0] == address:
            return packed
    except (ValueError, IndexError, OverflowError, MalformedError):
        pass  # not one of the usual kinds: it goes as text
    text = address.encode()
    return bytes([_TEXT_KIND]) + len(text).to_bytes(2, "big") + text


def _unpack_all(data: bytes) -> tuple[str, ...]:
    count, rest = data[0], data[1:]
    if not 1 <= count <= MAX_ADDRESSES:
        raise ValueError("number of addresses")
    addresses = []
    for _ in range(count):
        address, rest = _unpack(rest)
        addresses.append(address)
    if rest:
        raise ValueError("more than was announced")
    return tuple(addresses)


def _unpack(data: bytes) -> tuple[str, bytes]:
    """One address and what follows it. Raises ValueError, IndexError."""
    if data[0] == _TEXT_KIND:
        size = int.from_bytes(data[1:3], "big")
        text = data[3:3 + size].decode()
        if len(data) < 3 + size or not text.startswith("/") or not text.isprintable():
            raise ValueError("text")
        return text, data[3 + size:]
    family, transport = _KINDS[data[0]]
    split = 1 + _HOST_BYTES[family]
    host, port, key = data[1:split], data[split:split + 2], data[split + 2:split + 34]
    if len(key) != 32:
        raise ValueError("cut off")
    way = f"tcp/{int.from_bytes(port, 'big')}" if transport == "tcp" else f"udp/{int.from_bytes(port, 'big')}/quic-v1"
    return f"/{family}/{ipaddress.ip_address(host)}/{way}/p2p/{peer_name(_KEY_PREFIX + key)}", data[split + 34:]


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"atoll invite" + body).digest()[:_CHECK_BYTES]


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 60 else flat[:57] + "…")
