"""Virtual time: one queue of events, run in order of time and then of their making. Knows nothing of what they do."""

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._order = 0
        self._queue: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def at(self, when: float, action: Callable[..., object], *args: Any) -> None:
        """Run `action(*args)` at a time that is not before now."""
        self._order += 1
        heapq.heappush(self._queue, (max(when, self.now), self._order, action, args))

    def after(self, delay: float, action: Callable[..., object], *args: Any) -> None:
        self.at(self.now + delay, action, *args)

    def run(self, until: float, stop: Callable[[], bool]) -> bool:
        """Run events up to the time `until`, or until `stop` says so after one; whether it did."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, action, args = heapq.heappop(queue)
            self.events += 1
            action(*args)
            if stop():
                return True
        self.now = max(self.now, until)
        return False
