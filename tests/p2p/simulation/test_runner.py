"""Many seeds together."""

from atoll.p2p.simulation.plan import Plan, parse_faults
from atoll.p2p.simulation.runner import run


def test_the_number_of_processes_does_not_matter() -> None:
    plan = Plan(4, 3, parse_faults("crash,loss,skew"))
    alone, together = (run(plan, 5, 3, jobs=jobs).tree() for jobs in (1, 2))
    alone.pop("wall_seconds")
    together.pop("wall_seconds")
    assert alone == together
    assert alone["seeds"] == 3


def test_results_are_told_in_the_order_of_seeds_and_add_up() -> None:
    told: list[int] = []
    report = run(Plan(3, 2, frozenset()), 10, 3, jobs=1, told=lambda result: told.append(result.seed))
    assert told == [10, 11, 12]
    tree = report.tree()
    assert (tree["rounds_committed"], tree["forks"], tree["violations"], tree["faults_injected"]) == (6, 0, [], {})
    assert tree["messages_per_peer"]["all"]["mean"] > 0
    assert tree["bytes_per_peer"]["READY"]["max"] >= tree["bytes_per_peer"]["READY"]["mean"]
