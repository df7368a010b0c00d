"""The network as the rest of the package sees it: two ports, with one contract test for every implementation.

`Transport` opens ordered byte streams to peers by identity; `RecordStore` keeps small signed records under a key, with
expiry. Neither knows rounds, models or messages. Every call has a deadline of its own and raises `TransportError`
rather than hang: an open stream or a ping proves nothing (a frozen peer accepts both), only progress does.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from atoll.protocol.errors import AtollError
from atoll.protocol.identity import PeerId


class TransportError(AtollError):
    """The network did not do what was asked. `code` names the cause; the message says phase, address and remedy."""

    code = "transport"

    def __init__(self, message: str, code: str = "transport") -> None:
        super().__init__(message)
        self.code = code


class Stream(Protocol):
    """An ordered, reliable byte stream. Rule of the wire: everything is length-prefixed; the last reader closes first,
    the last writer awaits EOF (`wait_eof`) before `close()`, or the tail may be lost on QUIC.
    """

    remote: PeerId

    async def read_exactly(self, count: int, *, timeout_s: float) -> bytes:
        """Exactly `count` bytes. Raises TransportError `closed` on EOF before that, `stalled` after the timeout.

        The timeout is for the whole call. After either error the stream is closed: its position is undefined.
        """
        ...

    async def write(self, data: bytes | memoryview, *, timeout_s: float) -> None:
        """Write and wait for the kernel to take it. Raises TransportError (`closed`, `stalled`).

        The timeout is for the whole call. After either error, and after a cancellation, the stream is closed: half a
        message may be on its way.
        """
        ...

    async def wait_eof(self, *, timeout_s: float) -> None:
        """Wait until the remote has closed. Raises TransportError `stalled`."""
        ...

    async def close(self) -> None:
        """Close both directions; idempotent, never raises."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Called once per accepted stream; when it returns or raises, the transport closes the stream."""


class Transport(Protocol):
    peer_id: PeerId

    async def open(self, peer: PeerId, protocol: str, *, timeout_s: float) -> Stream:
        """Open a stream for `protocol` (`/atoll/1/…`). Raises TransportError (`unreachable`, `stalled`)."""
        ...

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Accept streams for `protocol` from now on, also across a repair of the transport underneath."""
        ...

    async def connect(self, peer: PeerId, addresses: Sequence[str], *, timeout_s: float) -> None:
        """Make `peer` dialable under these multiaddrs (without /p2p/…) and dial it. Raises TransportError."""
        ...

    def addresses(self) -> list[str]:
        """Own listening multiaddrs, each with /p2p/<own id>, TCP first, loopback last unless there is nothing else."""
        ...

    async def connected(self) -> list[PeerId]:
        """Peers with a live connection underneath (says nothing about whether they make progress)."""
        ...

    async def close(self) -> None: ...


class RecordStore(Protocol):
    """Signed records under (key, subkey): `protocol.records.record_key(run_id)` and the signer's name."""

    def time_s(self) -> float:
        """Unix time by which records are dated and judged: this machine's clock, shifted to its peers' if it is off."""
        ...

    async def put(self, key: str, subkey: str, value: bytes, *, lifetime_s: float) -> bool:
        """Store; False when no node took it. An invalid record (see `protocol.records`) is refused here already."""
        ...

    async def get(self, key: str) -> Mapping[str, bytes]:
        """All live, valid records under `key`, by subkey; empty when there are none. Invalid ones are left out."""
        ...
