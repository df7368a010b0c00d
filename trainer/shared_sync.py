"""Rank 0's `OuterSync`, seen by every rank of the peer: each call is a collective with one answer for all.

All ranks run the same loop over this object, so they can never take a different number of steps: whatever rank 0 learns
from the daemon is broadcast before anybody acts on it. Where the port raises on rank 0, the others raise RankLostError.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from atoll.trainer.flatten import Vector
from atoll.trainer.outer_sync import Evaluation, Order, OuterSnapshot, OuterSync, Progress
from atoll.trainer.ranks import RankLostError, Ranks

T = TypeVar("T")

_ORDERS = tuple(Order)
_LOST, _NONE, _SOME = 0, 1, 2


@dataclass(frozen=True)
class Outer:
    """A certified outer state as every rank sees it; `parent` and `params` only on rank 0, empty and None elsewhere."""

    parent: bytes
    round: int
    finished: bool
    params: Vector | None


class SharedSync:
    def __init__(self, sync: OuterSync | None, ranks: Ranks) -> None:
        """`sync` on rank 0, None on the others."""
        if (sync is not None) != ranks.leads:
            raise ValueError("rank 0, and only rank 0, holds the port")
        self._sync, self._ranks = sync, ranks

    def latest(self) -> Outer:
        snapshot = None
        if self._sync is not None:
            snapshot = self._guarded(self._sync.latest)
        outer = self._shared(snapshot)
        if outer is None:
            raise RankLostError("the daemon has no outer state to train from; its log says why.")
        return outer

    def wait_next(self, outer: Outer) -> Outer | None:
        """The state after `outer`; None when the daemon drains."""
        snapshot = None
        if self._sync is not None:
            sync, parent = self._sync, outer.parent
            snapshot = self._guarded(lambda: sync.wait_next(parent))
        return self._shared(snapshot)

    def report(self, progress: Progress) -> Order:
        number = 0
        if self._sync is not None:
            sync = self._sync
            number = _ORDERS.index(self._guarded(lambda: sync.report(progress))) + 1
        number, _, _ = self._ranks.from_lead([number, 0, 0], 3)
        if not number:
            raise _lost()
        return _ORDERS[number - 1]

    def vector(self) -> Vector | None:
        """The buffer to fill on rank 0, None elsewhere. Not a collective."""
        return self._sync.vector() if self._sync is not None else None

    def contribute(self, outer: Outer, tokens: int, steps: int, vector: Vector | None) -> None:
        """Hand over the filled vector on rank 0. Not a collective. Raises ValueError as the port does."""
        if self._sync is not None and vector is not None:
            self._sync.contribute(outer.parent, tokens, steps, vector)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Report a held-out loss from rank 0. Not a collective."""
        if self._sync is not None:
            self._sync.evaluated(evaluation)

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except BaseException:
            self._ranks.from_lead([_LOST, 0, 0], 3)
            raise

    def _shared(self, snapshot: OuterSnapshot | None) -> Outer | None:
        head = [_NONE, 0, 0] if snapshot is None else [_SOME, snapshot.round, int(snapshot.finished)]
        kind, round_number, finished = self._ranks.from_lead(head, 3)
        if kind == _LOST:
            raise _lost()
        if kind == _NONE:
            return None
        parent, params = (b"", None) if snapshot is None else (snapshot.parent, snapshot.params)
        return Outer(parent, round_number, bool(finished), params)


def _lost() -> RankLostError:
    return RankLostError("rank 0 stopped; its own message says why.")
