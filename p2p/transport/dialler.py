"""Finds and dials peers for the hivemind transport: who is known where, why a dial failed, whose clock says what.

An address is probed before p2pd dials it (see `diagnose`), and whoever is connected is greeted once on the DHT, so
that both appear in each other's routing tables and clocks can be compared. Remembers addresses across a repair, when
everybody who was connected is dialled again.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atoll.p2p.transport import clock
from atoll.p2p.transport.address import Address, parse_address
from atoll.p2p.transport.apart import apart
from atoll.p2p.transport.control import DaemonRefusedError
from atoll.p2p.transport.diagnose import explain_daemon_error, probe
from atoll.p2p.transport.keeper import DaemonKeeper
from atoll.p2p.transport.p2pd import RPC_TIMEOUT_S
from atoll.p2p.transport.port import TransportError
from atoll.p2p.transport.torchless import Hivemind
from atoll.protocol.identity import PeerId, peer_name

DIAL_TIMEOUT_S = 6.0
_MAX_PEERS = 1024
_MAX_ADDRESSES = 16
_AT_ONCE = 8

_log = logging.getLogger(__name__)


class Dialler:
    def __init__(self, hivemind: Hivemind, keeper: DaemonKeeper) -> None:
        self._hivemind, self._keeper = hivemind, keeper
        self._known: OrderedDict[PeerId, list[Address]] = OrderedDict()
        self._last_cause: OrderedDict[PeerId, TransportError] = OrderedDict()
        self._greeted: set[PeerId] = set()
        self.clocks = clock.PeerClocks()

    def remember(self, peer: PeerId, addresses: Iterable[Address]) -> None:
        """Make `peer` dialable there; the newest addresses come first, the oldest are forgotten."""
        merged = list(dict.fromkeys([*addresses, *self._known.get(peer, [])]))
        self._known[peer] = merged[:_MAX_ADDRESSES]
        self._known.move_to_end(peer)
        while len(self._known) > _MAX_PEERS:
            self._known.popitem(last=False)

    def known(self, peer: PeerId) -> list[Address]:
        return self._known.get(peer, [])

    async def is_connected(self, peer: PeerId) -> bool:
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S):
                daemon = await self._keeper.live()
                return peer in await daemon.control.list_peers(timeout_s=RPC_TIMEOUT_S)
        except (TimeoutError, DaemonRefusedError) as error:
            raise TransportError("the libp2p daemon does not answer; it is being replaced.", "unreachable") from error

    async def dial(self, peer: PeerId, addresses: Sequence[Address], phase: str) -> None:
        """Connect to `peer` under any of `addresses`. Raises TransportError with the cause; the caller limits the wait
        (RESOLVE + CONNECT + DIAL_TIMEOUT_S, 14 s, where no repair is going on).
        """
        if not addresses:
            raise TransportError(f"{phase}: no address of {peer_name(peer)} is known.", "unreachable")
        causes = await asyncio.gather(*(_cause(address, phase) for address in addresses))
        reachable = [address for address, cause in zip(addresses, causes, strict=True) if cause is None]
        if not reachable:
            raise next(cause for cause in causes if cause is not None)
        daemon = await self._keeper.live()
        try:
            ways = [address.without_peer for address in reachable]
            await daemon.control.connect(peer, ways, timeout_s=DIAL_TIMEOUT_S)
        except DaemonRefusedError as error:
            raise self._explain(str(error), peer, reachable[0], phase) from error
        except TimeoutError as error:
            raise TransportError(
                f"{phase}: {reachable[0].where} ({reachable[0].how}) takes connections and does not speak libp2p for "
                f"{DIAL_TIMEOUT_S:g} s; it is frozen, or the address {reachable[0].text} is wrong.", "unreachable",
            ) from error
        self._last_cause.pop(peer, None)

    async def greet(self, peer: PeerId) -> None:
        """Enter each other's DHT routing tables and compare clocks. A peer that does not answer stays out."""
        self._greeted.add(peer)
        daemon = await self._keeper.live()
        protocol, remote = daemon.node.protocol, self._hivemind.PeerID(peer)
        asked_s = clock.machine_time_s()
        try:
            request = self._hivemind.dht_pb2.PingRequest(peer=protocol.node_info)
            answer = await apart(protocol.get_stub(remote).rpc_ping(request, timeout=RPC_TIMEOUT_S))
            answered_s = clock.machine_time_s()
            if answer.peer and answer.peer.node_id:
                node_id = self._hivemind.DHTID.from_bytes(answer.peer.node_id)
                await apart(protocol.update_routing_table(node_id, remote, responded=True))
        except Exception as error:  # noqa: BLE001  # whatever hivemind makes of a stranger's bytes, a timeout too
            _log.debug("no greeting from %s: %s", peer_name(peer), error or type(error).__name__)
            self._greeted.discard(peer)
            return
        if answer.dht_time:
            clock.set_offset(self.clocks.observe(peer, answer.dht_time - (asked_s + answered_s) / 2))

    def to_greet(self, connected: Iterable[PeerId]) -> list[PeerId]:
        """Connected peers that were not greeted yet, a few at a time; they count as greeted now."""
        connected = set(connected)
        self._greeted &= connected
        new = sorted(connected - self._greeted)[:_AT_ONCE]
        self._greeted.update(new)
        return new

    async def redial(self, seen: Mapping[PeerId, Sequence[str]]) -> None:
        """Dial everybody who was connected before a repair, under what is known of them and where they were seen."""
        self._greeted.clear()
        self._last_cause.clear()
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(peer: PeerId, texts: Sequence[str]) -> None:
            addresses = list(dict.fromkeys([*self.known(peer), *_readable(texts)]))[:_MAX_ADDRESSES]
            async with slots:
                try:
                    if not await self.is_connected(peer):
                        await self.dial(peer, addresses, "Dialling again")
                except TransportError as error:
                    _log.info("%s", error, extra={"code": error.code})

        async with asyncio.TaskGroup() as tasks:
            for peer, texts in seen.items():
                tasks.create_task(one(peer, texts))

    def _explain(self, words: str, peer: PeerId, address: Address, phase: str) -> TransportError:
        """p2pd says "dial backoff" for some time after a failure: then the failure before that is the cause."""
        earlier = self._last_cause.get(peer)
        if "dial backoff" in words and "mismatch" not in words and earlier is not None:
            return TransportError(str(earlier), earlier.code)
        cause = explain_daemon_error(words, address, phase)
        self._last_cause[peer] = cause
        while len(self._last_cause) > _MAX_PEERS:
            self._last_cause.popitem(last=False)
        return cause


async def _cause(address: Address, phase: str) -> TransportError | None:
    try:
        await probe(address, phase)
    except TransportError as error:
        return error
    return None


def _readable(texts: Iterable[str]) -> list[Address]:
    found: list[Any] = []
    for text in texts:
        try:
            found.append(parse_address(text))
        except TransportError as error:
            _log.debug("left out an address: %s", error)
    return found
