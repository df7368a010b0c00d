"""Slots for streams: per peer and in all, given back once, handed to whoever waits."""

import asyncio

import pytest

from atoll.p2p.transport.slots import StreamSlots


async def test_slots_are_counted_per_peer_and_in_all():
    slots = StreamSlots(per_peer=2, in_all=3)
    first, second = slots.try_take(b"a"), slots.try_take(b"a")
    assert first is not None
    assert second is not None
    assert slots.try_take(b"a") is None
    assert slots.try_take(b"b") is not None
    assert slots.try_take(b"c") is None
    first()
    first()
    assert slots.try_take(b"c") is not None
    assert slots.try_take(b"a") is None


async def test_a_waiter_gets_the_slot_that_is_given_back_and_a_cancelled_one_does_not_keep_it():
    slots = StreamSlots(per_peer=1, in_all=9)
    give_back = slots.try_take(b"a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await slots.take(b"a")
    waiting = [asyncio.create_task(slots.take(b"a")) for _ in range(2)]
    await asyncio.sleep(0)
    give_back()
    done, pending = await asyncio.wait(waiting, timeout=0.05)
    assert len(done) == len(pending) == 1
    done.pop().result()()
    (await pending.pop())()
    assert slots.try_take(b"a") is not None
