"""Multiaddrs as text: taken apart and checked without libp2p, so that a typo is answered before anything starts.

Understands what peers of this network use: an IP address or a name, TCP or QUIC, optionally `/p2p/ID` and a relayed
`/p2p-circuit/p2p/ID` behind it. Resolves nothing and dials nothing (`diagnose` does).
"""

import ipaddress
from dataclasses import dataclass

from atoll.p2p.transport.port import TransportError
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import PeerId, parse_peer, peer_name

EXAMPLE = "/ip4/203.0.113.7/tcp/4001/p2p/12D3Koo…"
_FAMILIES = {"ip4": "IPv4", "ip6": "IPv6", "dns4": "IPv4", "dns6": "IPv6", "dns": "IP"}
_MAX_TEXT = 512


@dataclass(frozen=True)
class Address:
    """A multiaddr in its parts. `peer` is whom it names in the end, behind a relay too; None where it names nobody."""

    text: str
    protocol: str      # ip4, ip6, dns, dns4, dns6
    host: str
    transport: str     # tcp or udp
    port: int
    quic: bool
    relayed: bool
    peer: PeerId | None

    @property
    def family(self) -> str:
        return _FAMILIES[self.protocol]

    @property
    def is_name(self) -> bool:
        return self.protocol.startswith("dns")

    @property
    def is_loopback(self) -> bool:
        return not self.is_name and ipaddress.ip_address(self.host).is_loopback

    @property
    def where(self) -> str:
        return f"{self.host} port {self.port}"

    @property
    def how(self) -> str:
        return f"{self.family}, {'QUIC' if self.quic else self.transport.upper()}"

    @property
    def without_peer(self) -> str:
        """The address without its own `/p2p/ID`; a relay's stays, since it belongs to the way."""
        suffix = f"/p2p/{peer_name(self.peer)}" if self.peer else ""
        return self.text.removesuffix(suffix)

    def with_port(self, port: int) -> str:
        """The same address with another port (of the first `/tcp/` or `/udp/`)."""
        return self.text.replace(f"/{self.transport}/{self.port}", f"/{self.transport}/{port}", 1)


def parse_address(text: str, *, need_peer: bool = False) -> Address:
    """Take a multiaddr apart. Raises TransportError `malformed_address` with what is wrong with it."""
    if len(text) > _MAX_TEXT or not text.isprintable():
        raise _malformed(text, f"it is longer than {_MAX_TEXT} letters or not printable")
    parts = text.split("/")
    if parts[0] or len(parts) < 5:
        raise _malformed(text, "it does not have the parts /family/host/tcp/port")
    _, protocol, host, transport, port, *rest = parts
    _check_host(text, protocol, host)
    if transport not in ("tcp", "udp"):
        raise _malformed(text, f"{transport!r} is neither tcp nor udp")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise _malformed(text, f"{port!r} is not a port")
    quic = rest[:1] == ["quic-v1"]
    if transport == "udp" and not quic:
        raise _malformed(text, "UDP is used with /quic-v1 only")
    hops, relayed = _read_peers(text, rest[1:] if quic else rest)
    if need_peer and not hops:
        raise _malformed(text, "it names no peer (/p2p/12D3Koo…)")
    return Address(text, protocol, host, transport, int(port), quic, relayed, hops[-1] if hops else None)


def _check_host(text: str, protocol: str, host: str) -> None:
    if protocol not in _FAMILIES:
        raise _malformed(text, f"{protocol!r} is none of {', '.join(_FAMILIES)}")
    if protocol.startswith("ip"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError as error:
            raise _malformed(text, f"{host!r} is not an IP address") from error
        if version != int(protocol[2]) or "%" in host:
            raise _malformed(text, f"{host!r} is not an {_FAMILIES[protocol]} address")
    elif not host or len(host) > 253:
        raise _malformed(text, "the name of the host is missing or too long")


def _read_peers(text: str, rest: list[str]) -> tuple[list[PeerId], bool]:
    """PeerIDs on the way, the last one the peer itself; and whether a relay is on it."""
    hops: list[PeerId] = []
    relayed = False
    while rest:
        if rest[0] == "p2p" and len(rest) > 1 and len(hops) < 2:
            try:
                hops.append(parse_peer(rest[1]))
            except MalformedError as error:
                raise _malformed(text, str(error).rstrip(".")) from error
            rest = rest[2:]
        elif rest[0] == "p2p-circuit" and len(hops) == 1 and not relayed:
            relayed, rest = True, rest[1:]
        else:
            raise _malformed(text, f"{rest[0]!r} is not expected there")
    if relayed and len(hops) < 2:
        return [], True  # a relay that leads nowhere names no peer of its own
    if len(hops) == 2 and not relayed:
        raise _malformed(text, "it names two peers")
    return hops, relayed


def _malformed(text: str, reason: str) -> TransportError:
    shown = text if len(text) <= 120 else text[:117] + "…"
    sentence = f"{shown!r} is not an address of a peer: {reason}. It looks like {EXAMPLE}"
    return TransportError(sentence, "malformed_address")
