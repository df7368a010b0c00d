"""Keeps this peer joined to the network: dials the peers it was told of until they answer, and again when one is lost.

Each initial peer has a task of its own with a back-off, so that one that cannot be reached delays nobody, and joining
goes on by itself once the fault is lifted. What is wrong at present is in `problems`, a sentence per peer.
Knows addresses and a dial function; run by the hivemind transport.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from atoll.p2p.transport.address import Address, parse_address
from atoll.p2p.transport.port import TransportError
from atoll.protocol.identity import PeerId, peer_name

PHASE = "Bootstrap"
FIRST_DELAY_S = 1.0
MAX_DELAY_S = 15.0
MAX_REMEMBERED_DELAY_S = 60.0  # many of them may be gone for good
CHECK_EVERY_S = 15.0
_MAX_PEERS = 64

_log = logging.getLogger(__name__)


def group(texts: Sequence[str], *, own: PeerId, trusted: bool = True) -> dict[PeerId, list[Address]]:
    """Addresses by peer, without this peer itself (a home remembers it too). A malformed address raises
    TransportError where a person named it (`trusted`), else it is left out.
    """
    peers: dict[PeerId, list[Address]] = {}
    for text in texts:
        try:
            address = parse_address(text, need_peer=True)
        except TransportError as error:
            if trusted:
                raise
            _log.info("%s", error, extra={"code": error.code})
            continue
        if address.peer is not None and address.peer != own and (address.peer in peers or len(peers) < _MAX_PEERS):
            known = peers.setdefault(address.peer, [])
            if address not in known:
                known.append(address)
    return peers


class Bootstrap:
    """One dialling task per initial peer. `dial` connects or raises TransportError in bounded time."""

    def __init__(
        self, initial: Mapping[PeerId, Sequence[Address]], remembered: Mapping[PeerId, Sequence[Address]],
        dial: Callable[[PeerId, Sequence[Address], str], Awaitable[None]],
        is_connected: Callable[[PeerId], Awaitable[bool]],
    ) -> None:
        self._peers, self._dial, self._is_connected = {**remembered, **initial}, dial, is_connected
        self._remembered = remembered.keys() - initial.keys()
        self._wake = {peer: asyncio.Event() for peer in self._peers}
        self._tried: set[PeerId] = set()
        self._settled = asyncio.Event()
        self.problems: dict[PeerId, TransportError] = {}
        if not self._peers:
            self._settled.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for peer in self._peers:
                tasks.create_task(self._keep(peer), name=f"bootstrap {peer_name(peer)}")

    async def settled(self) -> None:
        """Wait until one initial peer is connected, or each was tried once, or there is none."""
        await self._settled.wait()

    def is_remembered(self, peer: PeerId) -> bool:
        """Whether nobody but other peers ever named this one."""
        return peer in self._remembered

    def wake(self) -> None:
        """Dial now whoever is not connected: the transport underneath is new, or the network changed."""
        for event in self._wake.values():
            event.set()

    async def _keep(self, peer: PeerId) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            if await self._attempt(peer):
                delay_s, pause_s = FIRST_DELAY_S, CHECK_EVERY_S
            else:
                pause_s = delay_s * random.uniform(0.75, 1.0)  # noqa: S311  # jitter, no secret
                delay_s = min(2 * delay_s, MAX_REMEMBERED_DELAY_S if peer in self._remembered else MAX_DELAY_S)
            self._note_try(peer)
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake[peer].wait()
            except TimeoutError:
                continue
            self._wake[peer].clear()

    async def _attempt(self, peer: PeerId) -> bool:
        try:
            if not await self._is_connected(peer):
                await self._dial(peer, self._peers[peer], PHASE)
        except TransportError as error:
            if str(error) != str(self.problems.get(peer, "")):
                level = logging.INFO if peer in self._remembered else logging.WARNING
                _log.log(level, "%s", error, extra={"code": error.code})
            self.problems[peer] = error
            return False
        self.problems.pop(peer, None)
        return True

    def _note_try(self, peer: PeerId) -> None:
        self._tried.add(peer)
        if peer not in self.problems or len(self._tried) == len(self._peers):
            self._settled.set()
