"""Whole worlds: with honest code nothing is accused, and the same seed is the same run."""

import os
import subprocess
import sys

import pytest

from atoll.p2p.simulation.plan import Fault, Plan, parse_faults
from atoll.p2p.simulation.world import run_seed

PRINT = """
from atoll.p2p.simulation.plan import Plan
from atoll.p2p.simulation.world import run_seed
result = run_seed(Plan(5, 5), 3)
print(result.tip, result.events, result.virtual_s, sorted(result.injected.items()), result.sizes)
"""


@pytest.mark.parametrize("peers", [1, 2, 5])
def test_without_faults_every_round_is_certified_and_nothing_forks(peers: int) -> None:
    result = run_seed(Plan(peers, 4, frozenset()), 2)
    assert (result.round, result.forks, result.violations, result.injected) == (4, 0, (), {})


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_all_faults_nothing_is_accused(seed: int) -> None:
    result = run_seed(Plan(6, 6), seed)
    assert not result.violations, "\n".join(result.violations[0].timeline)
    assert result.round == 6


@pytest.mark.parametrize("fault", ["crash", "partition", "loss", "corrupt", "torn-journal", "equivocate"])
def test_a_fault_alone_is_injected_and_survived(fault: str) -> None:
    plan = Plan(4, 8, parse_faults(fault))
    results = [run_seed(plan, seed) for seed in (1, 2)]
    assert not [violation for result in results for violation in result.violations]
    assert set().union(*(result.injected for result in results)) <= {Fault(fault)}


def test_the_same_seed_is_the_same_run_in_every_process() -> None:
    said = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PRINT], env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True,
            text=True, check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert run_seed(Plan(5, 5), 3).tip in said.pop()
