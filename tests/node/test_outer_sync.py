"""The trainer's port over the local socket: states, orders, contributions, and a service that is replaced meanwhile."""

import asyncio
import math
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from atoll.node.errors import DrainingError
from atoll.node.outer_sync import SocketOuterSync
from atoll.trainer.outer_sync import Evaluation, Order, Progress


def open_files():
    return set(Path("/proc/self/fd").iterdir())


def progress(parent, step=1, loss=2.5):
    return Progress(parent, step, 20, loss, 100 * step, 1000.0)


@pytest.fixture
def port(home):
    port = SocketOuterSync(home.service_socket).open()
    yield port
    port.close()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def order_becomes(port, parent, order):
    async with asyncio.timeout(5):
        while port.report(progress(parent)) is not order:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_state_arrives_whole_and_cannot_be_written(port, serving, fake_service):
    await serving(fake_service(numel=100_000))
    snapshot = await asyncio.to_thread(port.latest)
    assert (snapshot.parent, snapshot.round, snapshot.finished) == (b"p0", 0, False)
    assert np.array_equal(snapshot.params, np.arange(100_000, dtype=np.float32))
    with pytest.raises(ValueError):
        snapshot.params[0] = 1


async def test_latest_waits_until_the_service_holds_a_state(port, serving, fake_service):
    host = await serving(fake_service(), held=False)
    waiting = asyncio.create_task(asyncio.to_thread(port.latest))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    host.hold()
    assert (await waiting).parent == b"p0"


async def test_a_contribution_travels_both_ways_and_the_next_state_follows(port, serving, fake_service):
    service = fake_service(numel=70_000)
    await serving(service)
    first = await asyncio.to_thread(port.latest)
    vector = await asyncio.to_thread(port.vector)
    vector[:] = 0.5
    await asyncio.to_thread(port.contribute, first.parent, 640, 20, vector)
    after = await asyncio.to_thread(port.wait_next, first.parent)
    parent, tokens, steps, sent = service.contributions[0]
    assert (parent, tokens, steps) == (b"p0", 640, 20)
    assert np.all(sent == 0.5)
    assert after.round == 1
    assert np.array_equal(after.params, np.arange(70_000, dtype=np.float32) - np.float32(0.5))
    assert not np.any(await asyncio.to_thread(port.vector)), "each round starts with a fresh buffer"
    assert service.idle == []


async def test_what_must_not_leave_this_machine_does_not(port, serving, fake_service):
    service = fake_service()
    await serving(service)
    await asyncio.to_thread(port.latest)
    vector = await asyncio.to_thread(port.vector)
    vector[3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        port.contribute(b"p0", 10, 1, vector)
    vector[3] = 0
    with pytest.raises(ValueError, match="0 tokens"):
        port.contribute(b"p0", 0, 1, vector)
    assert service.contributions == []


async def test_a_trainer_that_waits_with_empty_hands_is_not_waited_for(port, serving, fake_service):
    service = fake_service()
    await serving(service)
    await asyncio.to_thread(port.latest)
    waiting = asyncio.create_task(asyncio.to_thread(port.wait_next, b"p0"))
    await until(lambda: service.idle == [b"p0"])
    service.advance()
    assert (await waiting).parent == b"p1"


async def test_a_peer_whose_trainer_is_dead_or_still_loads_is_not_waited_for(serving, fake_service, home):
    service = fake_service()
    host = await serving(service)
    assert service.idle == [], "at genesis everybody starts, and is waited for"
    service.advance()
    assert service.idle == [b"p1"]
    port = SocketOuterSync(home.service_socket).open()
    try:
        await asyncio.to_thread(port.latest)
        service.advance()
        assert service.idle == [b"p1"]
    finally:
        port.close()
    await until(lambda: not host.server.connections)
    service.advance()
    assert service.idle == [b"p1", b"p3"]


async def test_reports_return_at_once_and_bring_orders(port, serving, fake_service):
    service = fake_service()
    started = time.monotonic()
    assert port.report(progress(b"p0")) is Order.CONTINUE, "without a service training goes on"
    assert time.monotonic() - started < 0.1
    host = await serving(service)
    await asyncio.to_thread(port.latest)
    assert port.report(progress(b"p0", step=7, loss=math.nan)) is Order.CONTINUE
    await until(lambda: (b"p0", 7, 20, 700) in service.reports)
    host.freeze(b"p0")
    await order_becomes(port, b"p0", Order.FREEZE)
    service.advance()
    await order_becomes(port, b"p0", Order.REBASE)
    assert port.report(progress(b"p1")) is Order.CONTINUE
    port.request_stop()
    assert port.report(progress(b"p1")) is Order.STOP


async def test_a_request_to_stop_ends_every_wait(port, serving, fake_service, home):
    await serving(fake_service(), held=False)
    waiting = asyncio.gather(
        asyncio.to_thread(port.wait_next, b"p0"), asyncio.to_thread(port.latest), return_exceptions=True
    )
    await asyncio.sleep(0.05)
    port.request_stop()
    nothing, raised = await waiting
    assert nothing is None
    assert isinstance(raised, DrainingError)


async def test_a_restarted_service_gets_the_contribution_that_its_predecessor_held(port, serving, fake_service):
    old, new = fake_service(advances=False), fake_service()
    host = await serving(old)
    await asyncio.to_thread(port.latest)
    vector = await asyncio.to_thread(port.vector)
    vector[:] = 2.0
    await asyncio.to_thread(port.contribute, b"p0", 64, 5, vector)
    waiting = asyncio.create_task(asyncio.to_thread(port.wait_next, b"p0"))
    await asyncio.sleep(0.05)
    host.task.cancel()
    await asyncio.gather(host.task, return_exceptions=True)
    assert port.report(progress(b"p0")) is Order.CONTINUE, "losing the service does not stop training"
    await serving(new)
    snapshot = await waiting
    assert snapshot.round == 1
    assert [entry[:3] for entry in new.contributions] == [(b"p0", 64, 5)]
    assert np.all(new.contributions[0][3] == 2.0)


async def test_a_contribution_waits_for_a_service_that_is_still_fetching_its_state(port, serving, fake_service):
    old, new = fake_service(advances=False), fake_service()
    host = await serving(old)
    await asyncio.to_thread(port.latest)
    await asyncio.to_thread(port.vector)
    host.drain()
    contributing = asyncio.create_task(asyncio.to_thread(port.contribute, b"p0", 64, 5, port.vector()))
    await asyncio.sleep(0.05)
    host.task.cancel()
    await asyncio.gather(host.task, return_exceptions=True)
    successor = await serving(new, held=False)
    await asyncio.sleep(0.05)
    assert not contributing.done()
    successor.hold()
    await contributing
    assert len(new.contributions) == 1


async def test_a_service_that_drains_is_waited_out(port, serving, fake_service):
    host = await serving(fake_service(advances=False))
    waiting = asyncio.create_task(asyncio.to_thread(port.wait_next, b"p0"))
    await asyncio.sleep(0.05)
    host.drain()
    host.task.cancel()
    await asyncio.gather(host.task, return_exceptions=True)
    assert not waiting.done()
    successor = fake_service()
    await serving(successor)
    successor.advance()
    assert (await waiting).parent == b"p1"


async def test_evaluations_reach_a_watcher_that_comes_later(port, serving, fake_service, home):
    from atoll.node.ipc_async import connect, ignore_event, refuse

    await serving(fake_service())
    await asyncio.to_thread(port.evaluated, Evaluation(b"p0", 0, 5.5, 1000, 1000))
    connection = await connect(home.service_socket, refuse, ignore_event)
    running = asyncio.create_task(connection.run())
    assert [row["loss"] for row in await connection.request("watch")] == [5.5]
    connection.close()
    await running


async def test_nothing_is_left_open(home, serving, fake_service):
    await serving(fake_service())
    await asyncio.to_thread(lambda: None)  # the loop's own thread exists
    before, threads = open_files(), threading.active_count()
    port = SocketOuterSync(home.service_socket).open()

    def work():
        snapshot = port.latest()
        port.contribute(snapshot.parent, 1, 1, port.vector())
        port.wait_next(snapshot.parent)
        port.vector()
        port.close()

    await asyncio.to_thread(work)
    await until(lambda: open_files() == before)
    assert threading.active_count() == threads
