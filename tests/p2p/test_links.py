"""Messages and blobs between two peers over a real (in-memory) transport."""

import asyncio
import contextlib

import pytest

from atoll.p2p.links import BULK, CONTROL, Links
from atoll.p2p.transport.memory import MemoryNetwork
from atoll.protocol import canonical
from atoll.protocol.digest import content_digest
from atoll.protocol.identity import Identity
from atoll.protocol.messages import Blob, BlobKind

ONE, TWO = Identity(b"\1" * 32).peer_id, Identity(b"\2" * 32).peer_id


class Inbox:
    """Keeps what arrives and lets a test await it."""

    def __init__(self, blobs=()):
        self.blobs = {content_digest(data): data for data in blobs}
        self.messages, self.received, self.broken = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()
        self.willing = True

    def on_message(self, peer, data):
        self.messages.put_nowait((peer, data))

    def accepts(self, peer, blob):
        return self.willing

    def on_bytes(self, peer, blob):
        pass

    async def on_blob(self, peer, blob, payload):
        self.received.put_nowait((peer, blob, payload))

    def on_broken(self, peer):
        self.broken.put_nowait(peer)

    def read_blob(self, digest):
        return self.blobs[digest]


@contextlib.asynccontextmanager
async def pair(blobs=()):
    network = MemoryNetwork()
    here, there = network.join(ONE), network.join(TWO)
    await here.connect(TWO, there.addresses(), timeout_s=1)
    sender, receiver = Inbox(blobs), Inbox()
    async with Links(here, sender) as out, Links(there, receiver):
        yield network, out, sender, receiver
    await here.close()
    await there.close()


def header(data, **changes):
    return Blob(BlobKind.RESULT, content_digest(data), len(data), bytes(32), **changes)


async def soon(queue):
    async with asyncio.timeout(5):
        return await queue.get()


async def test_messages_arrive_in_order_and_blobs_whole():
    data = [bytes([i]) * size for i, size in enumerate((1, 70_000, 1 << 20))]
    async with pair(data) as (_, out, _sender, receiver):
        for i in range(50):
            out.send(TWO, b"message %d" % i)
        for blob in data:
            out.send_blob(TWO, header(blob, part=3))
        for i in range(50):
            assert await soon(receiver.messages) == (ONE, b"message %d" % i)
        for blob in data:
            assert await soon(receiver.received) == (ONE, header(blob, part=3), blob)
        assert out.up_bytes > sum(map(len, data))


async def test_an_unwanted_blob_is_passed_over_and_the_next_arrives():
    async with pair([b"a" * 100_000, b"b"]) as (_, out, _sender, receiver):
        receiver.willing = False
        out.send_blob(TWO, header(b"a" * 100_000))
        out.send(TWO, b"after")
        await soon(receiver.messages)
        await asyncio.sleep(0)
        receiver.willing = True
        out.send_blob(TWO, header(b"b"))
        received = await soon(receiver.received)
        while received[2] != b"b":
            received = await soon(receiver.received)


async def test_bytes_that_do_not_match_their_digest_are_dropped():
    async with pair([b"good"]) as (_, out, sender, receiver):
        lie = content_digest(b"something else")
        sender.blobs[lie] = b"wrong"
        out.send_blob(TWO, Blob(BlobKind.RESULT, lie, 5, bytes(32)))
        out.send_blob(TWO, header(b"good"))
        assert (await soon(receiver.received))[2] == b"good"


async def test_a_blob_that_is_gone_from_disk_is_skipped():
    async with pair([b"here"]) as (_, out, _sender, receiver):
        out.send_blob(TWO, header(b"gone"))
        out.send_blob(TWO, header(b"here"))
        assert (await soon(receiver.received))[2] == b"here"


async def test_the_death_of_a_peer_is_told_at_once():
    async with pair() as (network, out, sender, receiver):
        out.send(TWO, b"first")
        await soon(receiver.messages)
        network.kill(TWO)
        out.send(TWO, b"lost")
        assert await soon(sender.broken) == TWO


@pytest.mark.parametrize(
    ("protocol", "data"),
    [
        (CONTROL, (1 << 31).to_bytes(4, "big")),
        (BULK, (1 << 30).to_bytes(4, "big")),
        (BULK, b"\0\0\0\3abc"),
        (
            BULK,
            len(canonical.encode(Blob(BlobKind.RESULT, bytes(32), 1 << 50).tree())).to_bytes(4, "big")
            + canonical.encode(Blob(BlobKind.RESULT, bytes(32), 1 << 50).tree()),
        ),
    ],
    ids=["huge message", "huge header", "no header", "huge blob"],
)
async def test_absurd_frames_end_the_stream_and_nothing_else(protocol, data):
    async with pair() as (_, out, _sender, receiver):
        stream = await out.transport.open(TWO, protocol, timeout_s=5)
        await stream.write(data, timeout_s=5)
        await stream.wait_eof(timeout_s=5)
        await stream.close()
        out.send(TWO, b"still here")
        assert (await soon(receiver.messages))[1] == b"still here"
