"""The outer loop without a network: several workers in one process, their contributions averaged as the protocol says.

`LocalSwarm` runs the same codecs and the same outer step as peers do, in memory; `LocalOuterSync` is one worker's port.
Workers run one at a time, in order, each in a thread of its own: a round's result does not depend on scheduling. For
tests, for reference runs and for convergence benches; knows no torch.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import content_digest
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Draft
from atoll.protocol.outer_step import PartReducer, step_part
from atoll.trainer.outer_sync import Evaluation, Order, OuterSnapshot, Progress

Vector = npt.NDArray[np.float32]


class LocalSwarm:
    """The outer state of a swarm of `workers`, advanced whenever each of them has contributed or passed."""

    def __init__(self, draft: Draft, genesis: Vector, run_id: bytes, workers: int) -> None:
        self.draft, self.workers = draft, workers
        self.layout = Layout(genesis.size, draft.exchange.part_elements)
        self.params: Vector = np.array(genesis, np.float32)
        self.momentum: Vector | None = np.zeros_like(self.params) if draft.outer.momentum else None
        self.round, self.tokens, self.parent = 0, 0, run_id
        self.stop_at: int | None = None   # workers are told to stop once this round is reached
        self._contributions: dict[int, tuple[int, Vector]] = {}
        self._waiting: set[int] = set()
        self._failed = False
        self._moved = threading.Condition()
        self.turn = threading.Lock()
        """Held by the worker that computes."""

    @property
    def finished(self) -> bool:
        return 0 < self.draft.run.rounds <= self.round

    @property
    def stopping(self) -> bool:
        return self.stop_at is not None and self.round >= self.stop_at

    def snapshot(self) -> OuterSnapshot:
        view = self.params.view()
        view.flags.writeable = False
        return OuterSnapshot(self.parent, self.round, self.tokens, self.finished, view)

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Run each worker's body in a thread of its own, to the end of all; raises what the first to fail raised."""
        failures: list[BaseException] = []

        def guarded(body: Callable[[], None]) -> None:
            with self.turn:
                try:
                    body()
                except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
                    failures.append(error)
                    with self._moved:
                        self._failed = True
                        self._moved.notify_all()

        threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def contribute(self, worker: int, tokens: int, vector: Vector) -> None:
        """Raises ValueError for a vector that is not finite or for zero tokens."""
        if tokens < 1:
            raise ValueError("a contribution of zero tokens")
        if not np.isfinite(vector).all():
            raise ValueError("a pseudo-gradient that is not finite")
        self._contributions[worker] = (tokens, vector)

    def wait_next(self, worker: int, parent: bytes) -> OuterSnapshot | None:
        """Give the turn to the others until the round is closed; the last to come closes it."""
        self.turn.release()
        try:
            with self._moved:
                if parent == self.parent and not self.finished:
                    self._waiting.add(worker)
                    if len(self._waiting) == self.workers:
                        self._close_round()
                        self._waiting.clear()
                        self._moved.notify_all()
                    self._moved.wait_for(lambda: self.parent != parent or self._failed)
                return None if self.stopping or self._failed or parent == self.parent else self.snapshot()
        finally:
            self.turn.acquire()

    def _close_round(self) -> None:
        """Average in order of workers, encode, decode and step, as peers do. Without any, the round counts."""
        exchange, outer = self.draft.exchange, self.draft.outer
        sent, gathered = codec(exchange.contribution_codec), codec(exchange.gather_codec)
        self.params = self.params.copy()  # snapshots of the last round stay as they are
        for bounds in self.layout if self._contributions else ():
            size = bounds.stop - bounds.start
            reducer = PartReducer(size)
            for worker in sorted(self._contributions):
                tokens, vector = self._contributions[worker]
                weight = -(-tokens // exchange.token_unit) if exchange.weights == "tokens" else 1
                reducer.add(weight, sent.decode(sent.encode(np.ascontiguousarray(vector[bounds])), size))
            average = gathered.decode(gathered.encode(reducer.average()), size)
            momentum = None if self.momentum is None else self.momentum[bounds]
            params, momentum = step_part(
                self.params[bounds], momentum, average,
                learning_rate=outer.learning_rate, momentum_factor=outer.momentum,
            )
            self.params[bounds] = params
            if self.momentum is not None and momentum is not None:
                self.momentum[bounds] = momentum
        self.round += 1
        self.tokens += sum(tokens for tokens, _ in self._contributions.values())
        self.parent = content_digest(self.parent + self.round.to_bytes(8, "little"))
        self._contributions.clear()


class LocalOuterSync:
    """One worker's port. `order` decides what `report` answers (for tests of freezing, rebasing and stopping)."""

    def __init__(
        self, swarm: LocalSwarm, worker: int, order: Callable[[Progress], Order] = lambda _: Order.CONTINUE,
    ) -> None:
        self._swarm, self._worker, self._order = swarm, worker, order
        self.progress: list[Progress] = []
        self.evaluations: list[Evaluation] = []

    def latest(self) -> OuterSnapshot:
        return self._swarm.snapshot()

    def report(self, progress: Progress) -> Order:
        self.progress.append(progress)
        return self._order(progress)

    def vector(self) -> Vector:
        return np.empty(self._swarm.layout.numel, np.float32)

    def contribute(self, parent: bytes, tokens: int, steps: int, vector: Vector) -> None:
        if steps < 1:
            raise ValueError("a contribution of zero steps")
        if parent == self._swarm.parent:
            self._swarm.contribute(self._worker, tokens, vector)

    def wait_next(self, parent: bytes) -> OuterSnapshot | None:
        return self._swarm.wait_next(self._worker, parent)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)
