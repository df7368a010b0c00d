"""A cancellation that arrives together with hivemind's answer ends the caller."""

import asyncio

import pytest

from atoll.p2p.transport.apart import apart


async def as_hivemind_waits(answer):
    return await asyncio.wait_for(answer, timeout=5)


async def cancelled_as_the_answer_arrives(work, answer):
    """Cancel a task that awaits `work` in the turn of the loop in which the answer is there."""
    task = asyncio.create_task(work)
    for _ in range(3):
        await asyncio.sleep(0)
    answer.set_result("pong")
    task.cancel()
    return await asyncio.wait_for(task, 5)


async def test_a_cancellation_ends_the_caller_even_when_the_answer_is_there():
    answer = asyncio.get_running_loop().create_future()
    with pytest.raises(asyncio.CancelledError):
        await cancelled_as_the_answer_arrives(apart(as_hivemind_waits(answer)), answer)


async def test_the_work_is_told_to_end():
    ended = asyncio.Event()

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(apart(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait_for(ended.wait(), 5)


async def test_results_and_errors_pass_through():
    async def one():
        return 1

    async def fail():
        raise ValueError("no")

    assert await apart(one()) == 1
    with pytest.raises(ValueError, match="no"):
        await apart(fail())
