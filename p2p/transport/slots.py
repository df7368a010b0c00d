"""How many streams may be open at once, to one peer and in all: what libp2p leaves to its users.

On QUIC the 254th stream to a peer hangs without an error, and nothing keeps a stranger from opening thousands.
Outgoing streams wait for a slot, incoming ones are turned away. Used by the hivemind transport.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from atoll.protocol.identity import PeerId

PER_PEER = 120
"""Each way, so that both together stay below QUIC's 254."""
IN_ALL = 1024


class StreamSlots:
    """A counting semaphore per peer and one over all peers."""

    def __init__(self, per_peer: int = PER_PEER, in_all: int = IN_ALL) -> None:
        self._per_peer, self._in_all = per_peer, in_all
        self._taken: Counter[PeerId] = Counter()
        self._waiting: list[tuple[PeerId, asyncio.Future[None]]] = []

    def try_take(self, peer: PeerId) -> Callable[[], None] | None:
        """A slot as the function that gives it back (once), or None if there is none."""
        if self._taken[peer] >= self._per_peer or self._taken.total() >= self._in_all:
            if not self._taken[peer]:
                del self._taken[peer]
            return None
        self._taken[peer] += 1
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._give_back(peer)

        return give_back

    async def take(self, peer: PeerId) -> Callable[[], None]:
        """A slot, first come first served among those for whom one is free; the caller limits the wait."""
        while (slot := self.try_take(peer)) is None:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (peer, woken)
            self._waiting.append(entry)
            try:
                await woken
            finally:
                if entry in self._waiting:
                    self._waiting.remove(entry)
        return slot

    def _give_back(self, peer: PeerId) -> None:
        self._taken[peer] -= 1
        if not self._taken[peer]:
            del self._taken[peer]
        # Whoever waits looks again; few ever wait, and a slot for one peer may be useless to the next in line.
        waiting, self._waiting = self._waiting, []
        for _, woken in waiting:
            if not woken.done():
                woken.set_result(None)
