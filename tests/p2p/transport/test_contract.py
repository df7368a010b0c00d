"""What every Transport and RecordStore promises, memory's and hivemind's alike."""

import asyncio
import os
import random
import time

import pytest

from atoll.p2p.transport.port import TransportError
from atoll.protocol.errors import AtollError, MalformedError, SignatureError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.records import PeerRecord, open_record, record_key

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_S = 20.0


async def echo(stream):
    """Length-prefixed bytes back; the last writer waits for the reader to close first."""
    count = int.from_bytes(await stream.read_exactly(8, timeout_s=LIMIT_S), "big")
    await stream.write(await stream.read_exactly(count, timeout_s=LIMIT_S), timeout_s=LIMIT_S)
    await stream.wait_eof(timeout_s=LIMIT_S)


async def ask(transport, peer_id, protocol, data):
    stream = await transport.open(peer_id, protocol, timeout_s=LIMIT_S)
    await stream.write(len(data).to_bytes(8, "big") + data, timeout_s=LIMIT_S)
    answer = await stream.read_exactly(len(data), timeout_s=LIMIT_S)
    await stream.close()
    return answer


def failing(code):
    return pytest.raises(TransportError, check=lambda error: error.code == code)


def record(peer, *, run_id, sequence=1, lifetime_s=60.0):
    made = PeerRecord(
        peer.identity.peer_id, run_id, tuple(peer.transport.addresses()), True, sequence,
        peer.transport.time_s() + lifetime_s)
    return made, made.seal(peer.identity)


async def test_eight_mebibytes_go_both_ways_at_once_without_loss(swarm):
    one, other, _ = swarm.peers
    size = 8 << 20
    out, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size)

    async def both(stream):
        async with asyncio.TaskGroup() as tasks:
            got = tasks.create_task(stream.read_exactly(size, timeout_s=LIMIT_S))
            tasks.create_task(stream.write(back, timeout_s=LIMIT_S))
        assert got.result() == out
        await stream.wait_eof(timeout_s=LIMIT_S)

    protocol = await swarm.serve(one, both)
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    async with asyncio.TaskGroup() as tasks:
        got = tasks.create_task(stream.read_exactly(size, timeout_s=LIMIT_S))
        tasks.create_task(stream.write(memoryview(out), timeout_s=LIMIT_S))
    await stream.close()
    assert got.result() == back


async def test_a_short_reply_is_never_cut_where_the_last_writer_awaits_the_end(swarm):
    one, other, _ = swarm.peers
    protocol = await swarm.serve(one, echo)
    for size in [0, 1, 17, 1000, 65_537] * 12:
        data = os.urandom(size)
        assert await ask(other.transport, one.identity.peer_id, protocol, data) == data


async def test_a_hundred_streams_at_once_do_not_mix(swarm):
    one, other, third = swarm.peers
    protocol = await swarm.serve(one, echo)

    async def one_stream(number, transport):
        data = number.to_bytes(2, "big") * 5000
        assert await ask(transport, one.identity.peer_id, protocol, data) == data

    async with asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(one_stream(number, (other, third)[number % 2].transport))


async def test_the_handler_is_told_who_opened_the_stream(swarm):
    one, other, third = swarm.peers
    seen = asyncio.Queue()

    async def note(stream):
        await stream.read_exactly(1, timeout_s=LIMIT_S)
        seen.put_nowait(stream.remote)

    protocol = await swarm.serve(one, note)
    for peer in (other, third):
        stream = await peer.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
        assert stream.remote == one.identity.peer_id
        await stream.write(b"!", timeout_s=LIMIT_S)
        assert await asyncio.wait_for(seen.get(), LIMIT_S) == peer.identity.peer_id
        await stream.close()


async def test_a_writer_whose_reader_never_reads_stalls_after_a_bounded_amount_and_the_stream_is_closed(swarm):
    one, other, _ = swarm.peers
    asleep = asyncio.Event()

    async def never_read(stream):
        await asleep.wait()

    protocol = await swarm.serve(one, never_read)
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    taken = 0
    with failing("stalled"):
        while taken < 64 << 20:
            await stream.write(bytes(1 << 18), timeout_s=0.5)
            taken += 1 << 18
    assert taken <= 4 << 20
    with failing("closed"):
        await stream.write(b"more", timeout_s=1)
    with failing("closed"):
        await stream.read_exactly(1, timeout_s=1)
    asleep.set()
    await stream.close()


async def test_a_read_that_misses_its_deadline_leaves_the_stream_closed(swarm):
    one, other, _ = swarm.peers
    ended = asyncio.Event()

    async def say_half(stream):
        await stream.write(b"half", timeout_s=LIMIT_S)
        await stream.wait_eof(timeout_s=LIMIT_S)
        ended.set()

    protocol = await swarm.serve(one, say_half)
    ended.clear()
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    with failing("stalled"):
        await stream.read_exactly(8, timeout_s=0.2)
    with failing("closed"):
        await stream.read_exactly(1, timeout_s=0.2)
    await asyncio.wait_for(ended.wait(), LIMIT_S)


async def test_a_remote_that_closes_in_mid_message_is_reported_as_closed(swarm):
    one, other, _ = swarm.peers

    async def half(stream):
        await stream.write(b"half", timeout_s=LIMIT_S)
        await stream.read_exactly(2, timeout_s=LIMIT_S)

    protocol = await swarm.serve(one, half)
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    assert await stream.read_exactly(4, timeout_s=LIMIT_S) == b"half"
    await stream.write(b"go", timeout_s=LIMIT_S)
    with failing("closed"):
        await stream.read_exactly(4, timeout_s=LIMIT_S)


@pytest.mark.parametrize("error", [None, MalformedError("nonsense"), RuntimeError("a bug")])
async def test_a_handler_that_returns_or_raises_closes_its_stream(swarm, error):
    one, other, _ = swarm.peers

    async def end(stream):
        if error is not None:
            raise error

    protocol = await swarm.serve(one, end)
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    await stream.wait_eof(timeout_s=LIMIT_S)
    await stream.close()
    await stream.close()


async def test_a_cancelled_write_does_not_leave_half_a_message_on_an_open_stream(swarm):
    one, other, _ = swarm.peers
    asleep = asyncio.Event()

    async def never_read(stream):
        await asleep.wait()

    protocol = await swarm.serve(one, never_read)
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.write(bytes(16 << 20), timeout_s=LIMIT_S)
    with failing("closed"):
        await stream.write(b"x", timeout_s=1)
    asleep.set()


async def test_one_task_may_wait_for_the_end_while_another_writes(swarm):
    one, other, _ = swarm.peers

    async def read_some(stream):
        await stream.read_exactly(100_000, timeout_s=LIMIT_S)

    protocol = await swarm.serve(one, read_some)
    stream = await other.transport.open(one.identity.peer_id, protocol, timeout_s=LIMIT_S)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream.wait_eof(timeout_s=LIMIT_S))
        for _ in range(10):
            await stream.write(bytes(10_000), timeout_s=LIMIT_S)
    await stream.close()


async def test_an_unknown_peer_is_unreachable_at_once(swarm):
    started = time.monotonic()
    with failing("unreachable"):
        await swarm.peers[0].transport.open(Identity.generate().peer_id, "/atoll/1/test/x", timeout_s=5)
    assert time.monotonic() - started < 4


async def test_a_protocol_that_the_peer_does_not_serve_is_unreachable(swarm):
    one, other, _ = swarm.peers
    with failing("unreachable"):
        await other.transport.open(one.identity.peer_id, "/atoll/1/test/unserved", timeout_s=5)


async def test_connected_names_the_peers_at_the_other_end(swarm):
    one, other, _ = swarm.peers
    await other.transport.connect(one.identity.peer_id, one.transport.addresses(), timeout_s=5)
    assert one.identity.peer_id in await other.transport.connected()
    assert other.identity.peer_id in await one.transport.connected()


async def test_a_peer_that_leaves_ends_its_streams_and_cannot_be_reached_again(swarm):
    leaver, stayer = await swarm.start(), swarm.peers[0]
    protocol = await swarm.serve(leaver, echo)
    await stayer.transport.connect(leaver.identity.peer_id, leaver.transport.addresses(), timeout_s=5)
    stream = await stayer.transport.open(leaver.identity.peer_id, protocol, timeout_s=LIMIT_S)
    reading = asyncio.create_task(stream.read_exactly(1, timeout_s=LIMIT_S))
    await leaver.transport.close()
    with failing("closed"):
        await reading
    started = time.monotonic()
    with failing("unreachable"):
        await stayer.transport.open(leaver.identity.peer_id, protocol, timeout_s=5)
    assert time.monotonic() - started < 5.5
    with pytest.raises(TransportError):
        await leaver.transport.open(stayer.identity.peer_id, protocol, timeout_s=1)


async def test_addresses_name_the_peer_itself(swarm):
    for peer in swarm.peers:
        assert peer.transport.addresses()
        assert all(text.endswith(f"/p2p/{peer_name(peer.identity.peer_id)}") for text in peer.transport.addresses())


async def test_records_of_all_peers_are_found_by_each(swarm):
    run_id = os.urandom(32)
    assert await swarm.peers[0].transport.get(record_key(run_id)) == {}
    sealed = {}
    for peer in swarm.peers:
        made, data = record(peer, run_id=run_id)
        assert await peer.transport.put(made.key, made.subkey, data, lifetime_s=60)
        sealed[made.subkey] = data
    for peer in swarm.peers:
        found = await peer.transport.get(record_key(run_id))
        assert found == sealed
        for subkey, data in found.items():
            open_record(data, subkey=subkey, now_s=peer.transport.time_s(), run_id=run_id)


async def test_a_newer_record_replaces_the_older_one(swarm):
    one, other, _ = swarm.peers
    run_id = os.urandom(32)
    for sequence in (1, 2, 3):
        made, data = record(one, run_id=run_id, sequence=sequence, lifetime_s=50 + sequence)
        assert await one.transport.put(made.key, made.subkey, data, lifetime_s=50 + sequence)
    assert await other.transport.get(made.key) == {made.subkey: data}


async def test_an_expired_record_is_no_longer_found(swarm):
    one, other, _ = swarm.peers
    run_id = os.urandom(32)
    made, data = record(one, run_id=run_id, lifetime_s=0.6)
    assert await one.transport.put(made.key, made.subkey, data, lifetime_s=0.6)
    assert list(await other.transport.get(made.key)) == [made.subkey]
    await asyncio.sleep(0.7)
    assert await other.transport.get(made.key) == {}
    with pytest.raises(MalformedError, match="expired"):
        await one.transport.put(made.key, made.subkey, data, lifetime_s=60)


async def test_an_invalid_record_is_refused_before_it_leaves(swarm):
    one, other, _ = swarm.peers
    run_id = os.urandom(32)
    made, data = record(one, run_id=run_id)
    foreign, _ = record(other, run_id=run_id)
    tampered = bytearray(data)
    tampered[-70] ^= 1
    refused = [
        (made.key, made.subkey, bytes(tampered), AtollError),
        (made.key, made.subkey, b"", MalformedError),
        (made.key, foreign.subkey, data, SignatureError),
        (record_key(os.urandom(32)), made.subkey, data, MalformedError),
    ]
    for key, subkey, value, error in refused:
        with pytest.raises(error):
            await one.transport.put(key, subkey, value, lifetime_s=60)
    assert await other.transport.get(made.key) == {}
