"""Awaiting hivemind's coroutines without losing a cancellation in them.

hivemind waits with `asyncio.wait_for`, which up to Python 3.11 returns the result, and forgets the cancellation, when
both arrive in one turn of the loop. A task that was told to end once would then go on for ever.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def apart(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` in a task of its own: a cancellation always ends the caller, and `work` is then told to end, too."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_forget)
        task.cancel()
        raise


def _forget(task: "asyncio.Future[Any]") -> None:
    """Nobody waits for this result any more; asking for it keeps asyncio from reporting an error nobody collected."""
    if not task.cancelled():
        task.exception()
