"""The learning rate is a function of the run's counters: a peer that joins late is where everybody else is."""

import dataclasses
import itertools

import pytest

from atoll.protocol.manifest import InnerSettings
from atoll.trainer.schedule import learning_rate

SETTINGS = InnerSettings(steps=10, learning_rate=1.0, warmup_steps=5, final_fraction=0.1, decay_fraction=0.2)


def rates(schedule: str, rounds: int, upto: int = 10) -> list[float]:
    settings = dataclasses.replace(SETTINGS, schedule=schedule)
    return [learning_rate(settings, rounds, number, step) for number in range(upto) for step in range(10)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_from_genesis(schedule):
    assert rates(schedule, 10)[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, rates(schedule, 10)[5]])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_an_endless_run_stays_at_the_peak(schedule):
    assert set(rates(schedule, 0)[5:]) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_ends_at_its_final_fraction_and_never_rises_after_the_warm_up(schedule):
    after = rates(schedule, 10)[5:]
    assert after[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(after))


def test_wsd_is_flat_until_its_decay():
    assert set(rates("wsd", 10)[5:80]) == {1.0}
    assert rates("wsd", 10)[85] < 1.0


def test_more_steps_than_the_manifest_asks_for_stay_at_the_rounds_last_rate():
    settings = dataclasses.replace(SETTINGS, schedule="cosine")
    assert learning_rate(settings, 10, 3, 25) == learning_rate(settings, 10, 3, 9)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_shorter_than_its_warm_up_only_warms_up(schedule):
    settings = dataclasses.replace(SETTINGS, schedule=schedule, warmup_steps=100)
    assert learning_rate(settings, 2, 1, 9) == pytest.approx(0.2)


def test_no_decay_at_all_is_a_constant_rate():
    settings = dataclasses.replace(SETTINGS, schedule="wsd", decay_fraction=0.0)
    assert learning_rate(settings, 10, 9, 9) == 1.0
