"""Virtual time."""

from atoll.p2p.simulation.clock import Clock


def test_events_run_in_order_of_time_and_then_of_their_making() -> None:
    clock, seen = Clock(), []
    for when, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.at(when, seen.append, name)
    assert not clock.run(5.0, lambda: False)
    assert seen == ["a", "b", "c"]
    assert clock.now == 5.0


def test_an_event_in_the_past_runs_now_and_stop_ends_the_run() -> None:
    clock, seen = Clock(), []
    clock.at(3.0, clock.at, 1.0, seen.append, "late")
    assert clock.run(10.0, lambda: bool(seen))
    assert (seen, clock.now) == (["late"], 3.0)


def test_nothing_behind_the_end_runs() -> None:
    clock, seen = Clock(), []
    clock.at(3.0, seen.append, "later")
    clock.run(2.0, lambda: False)
    assert not seen
