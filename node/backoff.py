"""When a child that ended is started again, and when that has no point any more. Pure: the caller has the clock."""

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Pauses of `first_s`, doubled up to `most_s`; after `attempts` ends within `window_s`, no more starts."""

    first_s: float = 0.5
    most_s: float = 30.0
    attempts: int = 6
    window_s: float = 600.0
    healthy_s: float = 60.0  # a child that lived this long starts the count anew
    _ends: deque[float] = field(default_factory=deque)

    def pause(self, started_s: float, now_s: float) -> float | None:
        """Seconds to wait before the next start of a child that started and ended then; None: give up."""
        if now_s - started_s >= self.healthy_s:
            self._ends.clear()
        while self._ends and now_s - self._ends[0] > self.window_s:
            self._ends.popleft()
        self._ends.append(now_s)
        if len(self._ends) >= self.attempts:
            return None
        return float(min(self.most_s, self.first_s * 2 ** (len(self._ends) - 1)))
