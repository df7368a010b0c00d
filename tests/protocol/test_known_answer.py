"""The self-test at start: quick, silent where all is well, and it names the operation that deviates."""

import threading
import time

import numpy as np
import pytest

from atoll.protocol import known_answer, outer_step
from atoll.protocol.codecs.registry import CODECS
from atoll.protocol.errors import NondeterministicCpuError


def test_this_machine_gives_the_known_answers():
    known_answer.check()


def test_every_codec_and_both_outer_steps_are_covered():
    assert set(known_answer.ANSWERS) == set(known_answer.answers())
    assert {f"{name} {way}" for name in CODECS for way in ("encode", "decode")} < set(known_answer.ANSWERS)


def test_it_takes_less_than_twenty_milliseconds():
    def seconds():
        begin = time.thread_time()
        known_answer.check()
        return time.thread_time() - begin

    assert min(seconds() for _ in range(5)) < 0.020


def test_the_inputs_hold_subnormals_zeros_and_heavy_tails():
    values = known_answer.numbers(known_answer.NUMEL, 1)
    magnitude = np.abs(values)
    assert 0 < magnitude[1024:1280].max() < 2.0**-126
    assert not values[1280:1536].any()
    assert magnitude.max() > 2.0**15
    assert np.median(magnitude) < 2.0**-8


def test_a_fused_multiply_add_is_caught_by_name(monkeypatch):
    def fused(params, momentum, average, *, learning_rate, momentum_factor):
        rate, factor = np.float32(learning_rate), np.float32(momentum_factor)
        if momentum is None:
            return (params - np.float64(rate) * average).astype(np.float32), None
        following = (np.float64(factor) * momentum + average).astype(np.float32)
        ahead = (np.float64(factor) * following + average).astype(np.float32)
        return (params - np.float64(rate) * ahead).astype(np.float32), following

    monkeypatch.setattr(known_answer, "step_part", fused)
    with pytest.raises(NondeterministicCpuError, match="known answers in Nesterov outer step, so"):
        known_answer.check()


def test_a_reciprocal_instead_of_a_division_is_caught(monkeypatch):
    def hasty(self):
        return self._sum * np.float32(1 / self._weight)

    monkeypatch.setattr(outer_step.PartReducer, "average", hasty)
    with pytest.raises(NondeterministicCpuError, match="known answers in average, so"):
        known_answer.check()


def test_flushed_subnormals_are_caught():
    import torch

    caught = []

    def run():
        torch.set_flush_denormal(True)
        try:
            known_answer.check()
        except NondeterministicCpuError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1
