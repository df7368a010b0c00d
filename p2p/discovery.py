"""Finding the run's other peers: publish a signed record in the DHT, read everybody else's, make them dialable.

Addresses of peers found are remembered, so that a restarted peer needs no bootstrap node that is still there. Knows
nothing of rounds; the service is told about every peer that answers a dial.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from atoll.p2p.transport.port import RecordStore, Transport, TransportError
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.records import PeerRecord, open_record, record_key

RECORD_LIFETIME_S = 180.0
PUBLISH_EVERY_S = 45.0
LOOK_EVERY_S = (1.0, 15.0)
DIAL_S = 6.0
MOST_REMEMBERED = 256

_log = logging.getLogger(__name__)


class Discovery:
    def __init__(
        self,
        transport: Transport,
        records: RecordStore,
        identity: Identity,
        run_id: bytes,
        *,
        trains: bool,
        found: Callable[[PeerId], None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.transport, self.records, self.identity, self.run_id, self.trains = (
            transport,
            records,
            identity,
            run_id,
            trains,
        )
        self._found, self._clock = found, wall_clock
        self.addresses: dict[PeerId, tuple[str, ...]] = {}
        self._dialled: set[PeerId] = set()

    async def run(self) -> None:
        """Publish and look until cancelled; often while the circle of peers still grows, seldom when it is settled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish())
            pause = LOOK_EVERY_S[0]
            while True:
                news = await self.look()
                pause = LOOK_EVERY_S[0] if news else min(1.5 * pause, LOOK_EVERY_S[1])
                await asyncio.sleep(pause)

    async def look(self) -> bool:
        """Read the records once and dial who is new; whether there was news."""
        try:
            found = await self.records.get(record_key(self.run_id))
        except TransportError as error:
            _log.info("cannot read the peer records: %s", error)
            return False
        fresh = []
        for subkey, data in found.items():
            try:
                record = open_record(data, subkey=subkey, now_s=self._clock(), run_id=self.run_id)
            except AtollError as error:
                _log.info("a peer record is left out: %s", error)
                continue
            if record.peer_id != self.identity.peer_id and len(self.addresses) < MOST_REMEMBERED:
                if self.addresses.get(record.peer_id) != record.addresses or record.peer_id not in self._dialled:
                    fresh.append(record)
                self.addresses[record.peer_id] = record.addresses
        results = await asyncio.gather(*(self._dial(record.peer_id, record.addresses) for record in fresh))
        return any(results)

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...]) -> bool:
        try:
            await self.transport.connect(peer, addresses, timeout_s=DIAL_S)
        except TransportError as error:
            _log.info("cannot dial %s: %s", peer_name(peer), error)
            return False
        self._dialled.add(peer)
        self._found(peer)
        return True

    async def _publish(self) -> None:
        while True:
            now = self._clock()
            record = PeerRecord(
                self.identity.peer_id,
                self.run_id,
                tuple(self.transport.addresses()[:16]),
                self.trains,
                int(now * 1000),
                now + RECORD_LIFETIME_S,
            )
            try:
                kept = await self.records.put(
                    record.key, record.subkey, record.seal(self.identity), lifetime_s=RECORD_LIFETIME_S
                )
            except TransportError as error:
                _log.info("cannot publish this peer's record: %s", error)
                kept = False
            await asyncio.sleep(PUBLISH_EVERY_S if kept else LOOK_EVERY_S[0])
