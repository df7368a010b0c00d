"""Keeping one kind of child alive: started, restarted after a pause when it dies, given up with a name in the end.

The children of one start belong together (the ranks of a trainer): when one ends, the others are ended too, and all are
started again. Knows neither what they do nor the terminal; the supervisor has one keeper for the p2p service and one
for the trainer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from atoll.node import exit_codes
from atoll.node.backoff import Backoff
from atoll.node.child import Child, Ended
from atoll.node.errors import ChildError
from atoll.node.exit_codes import ExitCode

_FOLLOWERS_S = 10.0  # how long the other ranks may take to end after the first has
_SECONDARY = frozenset({"rank_lost", "crashed"})  # ends that another child's words may explain


@dataclass(frozen=True)
class Role:
    """What a keeper keeps."""

    name: str                    # for people: "trainer", "p2p service"
    log: str                     # where the reader is sent
    clean_end_is_final: bool     # a trainer whose run is over ends by itself, a service does not


class Keeper:
    def __init__(
        self, role: Role, start: Callable[[], Awaitable[Sequence[Child]]], say: Callable[[str], None],
        backoff: Backoff | None = None,
    ) -> None:
        """`start` starts the children of one life; `say` takes one line for a person."""
        self._role = role
        self._start = start
        self._say = say
        self._backoff = backoff or Backoff()
        self._stopping = asyncio.Event()
        self.children: Sequence[Child] = ()
        self.restarts = 0
        self.trouble = ""  # how the last life ended, until the next one begins

    async def run(self) -> None:
        """Returns when stopped, or after a final clean end. Raises ChildError when starting again has no point."""
        while not self._stopping.is_set():
            started = time.monotonic()
            ended = await self._life()
            if self._stopping.is_set() or (ended.clean and self._role.clean_end_is_final):
                return
            pause = self._backoff.pause(started, time.monotonic())
            if ended.exit_code in exit_codes.PERMANENT or ended.code == "nondeterministic_cpu":
                raise ChildError(ended.message, ended.code, ended.exit_code)
            if pause is None:
                raise ChildError(
                    f"the {self._role.name} ended {self._backoff.attempts} times in a row, the last time with: "
                    f"{ended.message}; its log: {self._role.log}", ended.code, ended.exit_code,
                )
            self.trouble = ended.message
            self.restarts += 1
            name, log = self._role.name, self._role.log
            self._say(f"the {name} ended ({ended.message}); it starts again in {pause:g} s; its log: {log}")
            await _first(self._stopping.wait(), asyncio.sleep(pause))

    async def stop(self, grace_s: float) -> None:
        """Ask the children to end, and kill those that have not after `grace_s`."""
        self._stopping.set()
        for child in self.children:
            child.stop()
        if self.children:
            await asyncio.wait([asyncio.ensure_future(child.ended.wait()) for child in self.children], timeout=grace_s)
        self.kill()

    def kill(self) -> None:
        """End the children at once, and start none again."""
        self._stopping.set()
        for child in self.children:
            child.kill()

    async def _life(self) -> Ended:
        try:
            self.children = await self._start()
            self.trouble = ""
        except OSError as error:
            return Ended(ExitCode.FAILED, "cannot_start", f"cannot be started: {error.strerror or error}")
        try:
            return await _together(self.children)
        finally:
            self.children = ()


async def _together(children: Sequence[Child]) -> Ended:
    """Wait until all have ended, killing those that stay behind; the end that says most."""
    waits = [asyncio.ensure_future(child.wait()) for child in children]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        first = next(wait.result() for wait in waits if wait.done())
        await asyncio.wait(waits, timeout=_FOLLOWERS_S)
        for child, wait in zip(children, waits, strict=True):
            if not wait.done():
                child.kill()
        ends = await asyncio.gather(*waits)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
    failed = [first, *ends] if not first.clean else [end for end in ends if not end.clean]
    named = [end for end in failed if end.code not in _SECONDARY]
    return next(iter(named or failed), first)


async def _first(*awaitables: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
