"""What a command line and a seed say."""

import pytest

from atoll.p2p.simulation.plan import Fault, Plan, PlanError, draw, parse_faults


def test_all_none_and_lists_of_faults() -> None:
    assert parse_faults("all") == frozenset(Fault)
    assert parse_faults("none") == frozenset()
    assert parse_faults("crash, torn-journal") == {Fault.CRASH, Fault.TORN_JOURNAL}


def test_an_unknown_fault_is_named_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="`flood` is no fault; known are crash"):
        parse_faults("crash,flood")


@pytest.mark.parametrize("plan", [Plan(peers=0), Plan(peers=5000), Plan(rounds=0)])
def test_sizes_out_of_bounds_are_refused(plan: Plan) -> None:
    with pytest.raises(PlanError):
        plan.check()


def test_the_command_that_replays_a_seed_names_its_plan() -> None:
    plan = Plan(4, 5, frozenset({Fault.LOSS, Fault.CRASH}))
    assert plan.command(7) == "atoll sim --seed 7 --seeds 1 --peers 4 --rounds 5 --faults crash,loss"
    assert Plan().command(1).endswith("--faults all")


def test_a_seed_draws_the_same_scenario_every_time_and_another_seed_another() -> None:
    plan = Plan(5, 5)
    assert draw(plan, 3).manifest.run_id == draw(plan, 3).manifest.run_id != draw(plan, 4).manifest.run_id
    assert draw(plan, 3).peers[2].place == draw(plan, 3).peers[2].place
