"""The faults that the in-memory network is there for."""

import asyncio

import pytest

from atoll.p2p.transport.memory import MemoryNetwork
from atoll.p2p.transport.port import TransportError
from atoll.protocol.identity import Identity
from atoll.protocol.records import PeerRecord

NAME = "/atoll/1/test"


async def echo(stream):
    while True:
        await stream.write(await stream.read_exactly(4, timeout_s=5), timeout_s=5)


@pytest.fixture
async def network():
    made = MemoryNetwork()
    yield made
    for transport in list(made.peers.values()):
        await transport.close()


@pytest.fixture
def pair(network):
    one, other = (network.join(Identity.generate().peer_id) for _ in range(2))
    one.serve(NAME, echo)
    return one, other


async def test_a_frozen_peer_takes_streams_and_bytes_and_answers_when_it_thaws(network, pair):
    one, other = pair
    network.freeze(one.peer_id)
    stream = await other.open(one.peer_id, NAME, timeout_s=1)
    await stream.write(b"ping", timeout_s=1)
    answer = asyncio.create_task(stream.read_exactly(4, timeout_s=5))
    assert not (await asyncio.wait({answer}, timeout=0.05))[0]
    network.thaw(one.peer_id)
    assert await answer == b"ping"


async def test_bytes_into_a_frozen_peer_stall_in_the_end(network, pair):
    one, other = pair
    network.freeze(one.peer_id)
    stream = await other.open(one.peer_id, NAME, timeout_s=1)
    with pytest.raises(TransportError) as caught:
        await stream.write(bytes(8 << 20), timeout_s=0.1)
    assert caught.value.code == "stalled"


async def test_a_killed_peer_ends_its_streams_and_may_come_back(network, pair):
    one, other = pair
    stream = await other.open(one.peer_id, NAME, timeout_s=1)
    network.kill(one.peer_id)
    await stream.wait_eof(timeout_s=1)
    with pytest.raises(TransportError, match="not on this network"):
        await other.open(one.peer_id, NAME, timeout_s=1)
    network.join(one.peer_id).serve(NAME, echo)
    again = await other.open(one.peer_id, NAME, timeout_s=1)
    await again.write(b"ping", timeout_s=1)
    assert await again.read_exactly(4, timeout_s=1) == b"ping"


async def test_a_partition_stops_bytes_and_records_without_a_word_and_heals(network):
    identity = Identity.generate()
    one, other = network.join(identity.peer_id), network.join(Identity.generate().peer_id)
    one.serve(NAME, echo)
    record = PeerRecord(one.peer_id, bytes(32), (), True, 1, one.time_s() + 60)
    await one.put(record.key, record.subkey, record.seal(identity), lifetime_s=60)
    stream = await other.open(one.peer_id, NAME, timeout_s=1)
    network.partition({one.peer_id}, {other.peer_id})
    await stream.write(b"ping", timeout_s=1)
    answer = asyncio.create_task(stream.read_exactly(4, timeout_s=5))
    assert not (await asyncio.wait({answer}, timeout=0.05))[0]
    with pytest.raises(TransportError) as caught:
        await other.open(one.peer_id, NAME, timeout_s=0.05)
    assert caught.value.code == "unreachable"
    assert await other.get(record.key) == {}
    network.heal()
    assert await answer == b"ping"
    assert list(await other.get(record.key)) == [record.subkey]


async def test_a_writer_that_closes_before_the_reader_loses_the_tail(network):
    one, other = (network.join(Identity.generate().peer_id) for _ in range(2))

    async def hasty(stream):
        await stream.write(b"reply", timeout_s=1)

    one.serve(NAME, hasty)
    stream = await other.open(one.peer_id, NAME, timeout_s=1)
    await asyncio.sleep(0)  # the handler runs and returns
    with pytest.raises(TransportError) as caught:
        await stream.read_exactly(5, timeout_s=1)
    assert caught.value.code == "closed"
