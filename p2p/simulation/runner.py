"""Many seeds, in as many processes as there are cores, and what they came to together, in the order of the seeds."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.p2p.simulation.plan import Plan
from atoll.p2p.simulation.watch import Violation
from atoll.p2p.simulation.world import SeedResult, run_seed


@dataclass(frozen=True)
class Report:
    """All that `atoll sim` prints."""

    plan: Plan
    results: tuple[SeedResult, ...]
    wall_s: float

    @property
    def violations(self) -> list[Violation]:
        return [violation for result in self.results for violation in result.violations]

    def faults_injected(self) -> dict[str, int]:
        total = {str(fault): 0 for fault in sorted(self.plan.faults)}
        for result in self.results:
            for fault, count in result.injected.items():
                total[str(fault)] = total.get(str(fault), 0) + count
        return total

    def tree(self) -> dict[str, Any]:
        return {
            "seeds": len(self.results),
            "rounds_committed": sum(result.round for result in self.results),
            "forks": sum(result.forks for result in self.results),
            "faults_injected": self.faults_injected(),
            "violations": [violation.tree() for violation in self.violations],
            "virtual_seconds": round(sum(result.virtual_s for result in self.results), 3),
            "wall_seconds": round(self.wall_s, 3),
            "messages_per_peer": _cost([result.messages for result in self.results]),
            "bytes_per_peer": _cost([result.sizes for result in self.results]),
        }


def run(plan: Plan, first: int, count: int, *, jobs: int | None = None,
        told: Callable[[SeedResult], None] = lambda _: None) -> Report:
    """Simulate the seeds `first` to `first + count - 1`; `told` hears of each as it is done, in order."""
    began = time.monotonic()
    seeds = range(first, first + count)
    workers = min(jobs or len(os.sched_getaffinity(0)), count)
    results = []
    for result in _results(plan, seeds, workers):
        results.append(result)
        told(result)
    return Report(plan, tuple(results), time.monotonic() - began)


def _results(plan: Plan, seeds: Sequence[int], workers: int) -> Iterator[SeedResult]:
    if workers <= 1:
        for seed in seeds:
            yield run_seed(plan, seed)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_Task(plan), seeds)


@dataclass(frozen=True)
class _Task:
    """Picklable: a plan to run seeds of."""

    plan: Plan

    def __call__(self, seed: int) -> SeedResult:
        return run_seed(self.plan, seed)


def _cost(found: list[dict[str, list[int]]]) -> dict[str, dict[str, float]]:
    """Mean and maximum per peer, by kind of message and in all."""
    kinds = sorted({kind for costs in found for kind in costs})
    by_kind = {kind: [amount for costs in found for amount in costs.get(kind, ())] for kind in kinds}
    totals = [sum(column) for costs in found for column in zip(*costs.values(), strict=True)]
    return {
        kind: {"mean": round(sum(amounts) / len(amounts), 1), "max": max(amounts)}
        for kind, amounts in [*by_kind.items(), ("all", totals)] if amounts
    }
