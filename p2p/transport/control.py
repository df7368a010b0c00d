"""p2pd's control socket, with a deadline on every call and nothing left open after a miss.

hivemind's own client waits without limit, and where a caller gives up it leaves the connection behind, on which p2pd
may later open a stream that nobody closes. So the four calls that this transport makes directly are made here;
unary calls and handlers go through hivemind's client. Used by `p2pd` and the hivemind transport.
"""

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any

from atoll.p2p.transport.port import TransportError
from atoll.p2p.transport.torchless import Hivemind
from atoll.protocol.errors import MalformedError
from atoll.protocol.identity import PeerId, check_peer_id


class DaemonRefusedError(Exception):
    """p2pd answered with an error; the text is p2pd's."""


class Control:
    """Calls to one p2pd by its Unix socket."""

    def __init__(self, hivemind: Hivemind, socket_path: str) -> None:
        self._hivemind = hivemind
        self._path = socket_path
        self._messages = importlib.import_module("hivemind.proto.p2pd_pb2")
        self._wire = importlib.import_module("hivemind.p2p.p2p_daemon_bindings.utils")

    async def identify(self, *, timeout_s: float) -> tuple[PeerId, list[str]]:
        """Own PeerID and own addresses as libp2p sees them at this moment, each as a multiaddr."""
        answer = await self._call(self._messages.Request(type=self._messages.Request.IDENTIFY), timeout_s)
        texts = [self._address(data) for data in answer.identify.addrs]
        return bytes(answer.identify.id), [text for text in texts if text]

    async def list_peers(self, *, timeout_s: float) -> dict[PeerId, list[str]]:
        """Peers with a live connection, and the address at the other end. Peers without an Ed25519 key are left out."""
        answer = await self._call(self._messages.Request(type=self._messages.Request.LIST_PEERS), timeout_s)
        found: dict[PeerId, list[str]] = {}
        for info in answer.peers:
            try:
                peer = check_peer_id(bytes(info.id))
            except MalformedError:
                continue
            found.setdefault(peer, []).extend(text for text in map(self._address, info.addrs) if text)
        return found

    async def connect(self, peer: PeerId, addresses: Sequence[str], *, timeout_s: float) -> None:
        """Dial `peer` under these multiaddrs (without /p2p/…). Raises DaemonRefusedError with p2pd's words."""
        wanted = self._messages.ConnectRequest(
            peer=peer, addrs=[self._hivemind.Multiaddr(address).to_bytes() for address in addresses])
        await self._call(self._messages.Request(type=self._messages.Request.CONNECT, connect=wanted), timeout_s)

    async def open_stream(
        self, peer: PeerId, protocol: str, *, timeout_s: float,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to `peer`. Raises DaemonRefusedError with p2pd's words, TimeoutError."""
        wanted = self._messages.StreamOpenRequest(peer=peer, proto=[protocol])
        request = self._messages.Request(type=self._messages.Request.STREAM_OPEN, streamOpen=wanted)
        reader, writer, opened = None, None, False
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._path)
                await self._exchange(reader, writer, request)
            opened = True
        except (OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise _dead(error) from error
        finally:
            if writer is not None and not opened:
                writer.transport.abort()
        return reader, writer

    async def _call(self, request: Any, timeout_s: float) -> Any:
        writer = None
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._path)
                return await self._exchange(reader, writer, request)
        except TimeoutError:
            raise
        except (OSError, asyncio.IncompleteReadError) as error:
            raise _dead(error) from error
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Any) -> Any:
        await self._wire.write_pbmsg(writer, request)
        answer = self._messages.Response()
        await self._wire.read_pbmsg_safe(reader, answer)
        if answer.type == self._messages.Response.ERROR:
            raise DaemonRefusedError(answer.error.msg)
        return answer

    def _address(self, data: bytes) -> str | None:
        """A multiaddr's text; None for one of a kind that hivemind's parser does not know (a peer chose it)."""
        try:
            return str(self._hivemind.Multiaddr(data))
        except Exception:  # noqa: BLE001  # a dozen unrelated types
            return None


def _dead(error: Exception) -> TransportError:
    return TransportError(f"the libp2p daemon does not answer ({error}); it is being replaced.", "unreachable")
