"""Links between simulated peers: latency, an upload queue each, loss, reordering, partitions, flipped bytes.

Honest messages pass as objects (they are frozen); a sample of them, and every one that is corrupted, goes through the
real envelope as bytes. Knows nothing of the protocol beyond that. `peer` sends through it, `faults` disturb it.
"""

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atoll.protocol import canonical
from atoll.protocol.digest import Digest, content_digest
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import SIGNATURE_BYTES, PeerId
from atoll.protocol.messages import Blob, Get, Message, seal, unseal

if TYPE_CHECKING:
    from atoll.p2p.simulation.clock import Clock
    from atoll.p2p.simulation.peer import Peer

NEAR_S, FAR_S = 0.005, 0.08
NOTICE_S = 0.2  # until both ends of a broken stream know
FRAME_BYTES = 4
ENVELOPE_BYTES = len(canonical.encode([1, bytes(1 << 16), bytes(SIGNATURE_BYTES)])) - (1 << 16)


@dataclass
class Meter:
    """What one peer has sent, by kind of message: number and bytes on the wire."""

    count: dict[str, int] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, size: int) -> None:
        self.count[kind] = self.count.get(kind, 0) + 1
        self.size[kind] = self.size.get(kind, 0) + size


class Network:
    def __init__(self, clock: "Clock", seed: int, run_id: Digest, sample: int) -> None:
        self.clock, self.run_id, self._sample = clock, run_id, sample
        self.peers: dict[PeerId, Peer] = {}
        self.dice = random.Random(f"atoll network {seed}")
        self.loss = self.reorder = self.corruption = 0.0
        self.injected: dict[str, int] = {}
        self._groups: dict[PeerId, int] = {}
        self._last_at: dict[tuple[PeerId, PeerId, bool], float] = {}
        self._measured: tuple[Message | None, int] = None, 0

    # Faults.

    def split(self, groups: list[list[PeerId]]) -> None:
        """From now on only peers of one group hear each other."""
        self._groups = {peer: number for number, group in enumerate(groups) for peer in group}

    def join(self) -> None:
        self._groups = {}

    def connected(self, one: PeerId, other: PeerId) -> bool:
        return not self._groups or self._groups.get(one) == self._groups.get(other)

    # Sending.

    def send(self, sender: "Peer", to: PeerId, message: Message) -> None:
        size = self._size(message)
        self._transmit(sender, to, message, None, size)

    def send_blob(self, sender: "Peer", to: PeerId, blob: Blob, payload: bytes) -> None:
        self._transmit(sender, to, blob, payload, self._size(blob) + len(payload))

    def _size(self, message: Message) -> int:
        """Bytes on the wire. A message to many is measured once."""
        if self._measured[0] is message:
            return self._measured[1]
        body = len(canonical.encode(message.tree()))
        signature = 0 if isinstance(message, (Blob, Get)) else ENVELOPE_BYTES
        size = FRAME_BYTES + body + signature
        self._measured = message, size
        return size

    def _transmit(self, sender: "Peer", to: PeerId, message: Message, payload: bytes | None, size: int) -> None:
        receiver, now, dice = self.peers.get(to), self.clock.now, self.dice
        if receiver is None or receiver is sender:
            return
        sender.meter.add(type(message).__name__.upper(), size)
        leaves_at = sender.uploads_until = max(now, sender.uploads_until) + size / sender.upload_bps
        if not receiver.alive or not self.connected(sender.id, to):
            return
        if self.loss and dice.random() < self.loss:
            self._count("loss")
            if payload is not None or dice.random() < 0.3:  # a stream that loses bytes breaks
                self._break(sender, receiver)
            return
        at = leaves_at + self._latency(sender, receiver)
        if self.reorder and dice.random() < self.reorder:
            self._count("reorder")
            at += dice.uniform(0.05, 1.5)
        else:
            stream = sender.id, to, payload is not None
            at = max(at, self._last_at.get(stream, 0.0))
            self._last_at[stream] = at
        self.clock.at(at, self._deliver, sender, receiver, (sender.life, receiver.life, leaves_at), message, payload)

    def _latency(self, one: "Peer", other: "Peer") -> float:
        base = NEAR_S + FAR_S * math.dist(one.plan.place, other.plan.place)
        return base * self.dice.uniform(1.0, 1.2)

    def _break(self, one: "Peer", other: "Peer") -> None:
        for here, there in ((one, other), (other, one)):
            self.clock.after(NOTICE_S, here.link_broke, here.life, there.id)

    # Arriving.

    def _deliver(
        self, sender: "Peer", receiver: "Peer", when: tuple[int, int, float], message: Message, payload: bytes | None,
    ) -> None:
        sent_in, received_in, left_at = when
        if not receiver.alive or receiver.life != received_in or not self.connected(sender.id, receiver.id):
            return
        if (sender.life != sent_in or not sender.alive) and left_at > sender.died_at:
            return  # it died with this still in its queue
        corrupt = self.corruption and self.dice.random() < self.corruption
        if payload is not None and isinstance(message, Blob):
            if corrupt:
                self._count("corrupt")
                payload = self._flipped(payload)
            if content_digest(payload) == message.digest:
                receiver.blob_arrived(sender.id, message, payload)
            return
        if corrupt or (self._sample and self.dice.randrange(self._sample) == 0):
            read = self._through_bytes(sender, receiver, message, corrupt=bool(corrupt))
            if read is None:
                return
            message = read
        receiver.arrived(sender.id, message)

    def _through_bytes(self, sender: "Peer", receiver: "Peer", message: Message, *, corrupt: bool) -> Message | None:
        """The message after the real envelope; None if the receiver drops it."""
        data, kind, watch = seal(message, self.run_id, sender.identity), type(message).__name__, receiver.world.watch
        if corrupt:
            self._count("corrupt")
            data = self._flipped(data)
        try:
            read = unseal(data, self.run_id, sender.id)
        except AtollError as error:
            if not corrupt:
                watch.accuse("envelope", f"refuses an honest {kind}: {error}", receiver)
            return None
        if corrupt and not isinstance(read, (Blob, Get)):  # those are content-addressed: nobody has to believe them
            watch.accuse("envelope", f"believes a corrupt {kind}", receiver)
        if not corrupt and read != message:
            watch.accuse("envelope", f"reads another {kind} than was sent", receiver)
        return read

    def _flipped(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self.dice.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self.dice.randrange(8)]) + data[at + 1 :]

    def _count(self, fault: str) -> None:
        self.injected[fault] = self.injected.get(fault, 0) + 1
