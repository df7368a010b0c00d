"""The average and the outer step: the formula to the bit, and nothing that is not finite."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol.errors import MalformedError, NondeterministicCpuError, NonFiniteError
from atoll.protocol.manifest import WEIGHT_LIMIT
from atoll.protocol.outer_step import PartReducer, assert_denormals, step_part

f32 = np.float32
SIZES = [1, 7, 1000, 32_768, 40_001]


def vectors(numel, count, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(numel).astype(f32) for _ in range(count)]


@pytest.mark.parametrize("numel", SIZES)
def test_average_is_the_weighted_mean_in_the_order_of_the_calls(numel):
    contributions, weights = vectors(numel, 3), [3, 1, 70_001]
    reducer = PartReducer(numel)
    for weight, values in zip(weights, contributions, strict=True):
        reducer.add(weight, values)
    total = np.zeros(numel, f32)
    for weight, values in zip(weights, contributions, strict=True):
        product = values * f32(weight)
        total = total + product
    assert reducer.weight == sum(weights)
    assert reducer.average().tobytes() == (total / f32(sum(weights))).tobytes()
    exact = np.average(np.array(contributions, np.float64), axis=0, weights=weights)
    assert np.allclose(reducer.average(), exact, rtol=1e-6, atol=1e-7)


@given(weight=st.integers(1, WEIGHT_LIMIT - 1), numel=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
def test_average_of_one_contribution_is_that_contribution_within_rounding(weight, numel, seed):
    (values,) = vectors(numel, 1, seed)
    reducer = PartReducer(numel)
    reducer.add(weight, values)
    assert np.allclose(reducer.average(), values, rtol=2.0**-22, atol=0)


def test_average_of_equal_weights_of_a_power_of_two_is_exact():
    reducer = PartReducer(3)
    for weight in (128, 128):
        reducer.add(weight, np.array([1, 3, -0.5], f32))
    assert reducer.average().tolist() == [1, 3, -0.5]


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_LIMIT, WEIGHT_LIMIT - 10])
def test_weights_that_would_not_be_exact_are_refused_and_change_nothing(weight):
    reducer = PartReducer(2)
    reducer.add(10, np.array([1, 2], f32))
    with pytest.raises(MalformedError, match="their sum below 2\\^24"):
        reducer.add(weight, np.array([5, 5], f32))
    assert reducer.weight == 10
    assert reducer.average().tolist() == [1, 2]


def test_the_largest_sum_of_weights_is_accepted():
    reducer = PartReducer(1)
    reducer.add(WEIGHT_LIMIT - 2, np.array([2], f32))
    reducer.add(1, np.array([2], f32))
    assert reducer.average().tolist() == [2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_an_average_that_is_not_finite_or_absurd_is_refused(value):
    reducer = PartReducer(2)
    reducer.add(5, np.array([1, value], f32))
    with pytest.raises(NonFiniteError, match="an average holds"):
        reducer.average()


def test_a_caller_s_mistakes_are_refused():
    reducer = PartReducer(4)
    with pytest.raises(ValueError, match="no average"):
        reducer.average()
    with pytest.raises(ValueError, match="3 elements where 4 belong"):
        reducer.add(1, np.zeros(3, f32))
    with pytest.raises(ValueError, match="C-contiguous"):
        reducer.add(1, np.zeros(4))
    params = np.zeros(4, f32)
    with pytest.raises(ValueError, match="momentum factor"):
        step_part(params, None, params, learning_rate=1, momentum_factor=0.9)
    with pytest.raises(ValueError, match="momentum factor"):
        step_part(params, params, params, learning_rate=1, momentum_factor=0)
    with pytest.raises(ValueError, match="must be finite"):
        step_part(params, None, params, learning_rate=float("nan"), momentum_factor=0)
    with pytest.raises(ValueError, match="5 elements where 4 belong"):
        step_part(params, None, np.zeros(5, f32), learning_rate=1, momentum_factor=0)


@pytest.mark.parametrize("numel", SIZES)
def test_nesterov_step_is_the_written_formula_to_the_bit(numel):
    params, momentum, gradient = vectors(numel, 3)
    kept = [a.copy() for a in (params, momentum, gradient)]
    next_params, next_momentum = step_part(params, momentum, gradient, learning_rate=0.7, momentum_factor=0.9)
    m = momentum * f32(0.9)
    m = m + gradient
    ahead = m * f32(0.9)
    ahead = ahead + gradient
    update = ahead * f32(0.7)
    assert next_momentum.tobytes() == m.tobytes()
    assert next_params.tobytes() == (params - update).tobytes()
    assert all(np.array_equal(a, b) for a, b in zip(kept, (params, momentum, gradient), strict=True))
    assert not np.shares_memory(next_params, params)
    assert not np.shares_memory(next_momentum, momentum)


def test_plain_step_subtracts_and_has_no_momentum():
    params, gradient = vectors(1000, 2)
    next_params, next_momentum = step_part(params, None, gradient, learning_rate=1.0, momentum_factor=0.0)
    assert next_momentum is None
    assert next_params.tobytes() == (params - gradient).tobytes()


def test_a_part_steps_alike_whether_it_comes_alone_or_within_the_whole_vector():
    params, momentum, gradient = vectors(100_000, 3)
    whole, _ = step_part(params, momentum, gradient, learning_rate=0.7, momentum_factor=0.9)
    for part in (slice(0, 65_536), slice(65_536, 100_000), slice(12_345, 12_346)):
        alone, _ = step_part(params[part], momentum[part], gradient[part], learning_rate=0.7, momentum_factor=0.9)
        assert alone.tobytes() == whole[part].tobytes()


def test_nesterov_agrees_with_the_reference_optimizer_within_rounding():
    """PyTorch's SGD(nesterov=True) fuses operations on some CPUs, so it is near and not equal."""
    import torch

    params, momentum = vectors(500, 1)[0], np.zeros(500, f32)
    reference = torch.nn.Parameter(torch.from_numpy(params.copy()))
    optimizer = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=True)
    for gradient in vectors(500, 5, seed=2):
        params, momentum = step_part(params, momentum, gradient, learning_rate=0.7, momentum_factor=0.9)
        reference.grad = torch.from_numpy(gradient)
        optimizer.step()
    assert np.allclose(params, reference.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("params", "momentum", "gradient"),
    [(0, 0, np.nan), (np.inf, 0, 0), (0, np.nan, 0), (-3e38, 0, 2e38), (0, 3e38, 3e38)],
)
def test_a_step_to_something_not_finite_is_refused(params, momentum, gradient):
    arrays = [np.array([0, value], f32) for value in (params, momentum, gradient)]
    with pytest.raises(NonFiniteError, match="the next outer"):
        step_part(*arrays, learning_rate=1.0, momentum_factor=0.9)


def in_thread(function):
    """What `function` returns or raises in a thread of its own, whose floating-point mode dies with it."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except NondeterministicCpuError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_flushed_subnormals_change_numpy_in_that_thread_and_are_seen():
    import torch

    def flushed():
        assert torch.set_flush_denormal(True)
        product = np.full(8, 2.0**-126, f32) * f32(0.5)
        try:
            assert_denormals()
        except NondeterministicCpuError as error:
            return product.view(np.uint32).tolist(), str(error)
        return product.view(np.uint32).tolist(), None

    product, message = in_thread(flushed)
    assert product == [0] * 8
    assert "flushes subnormal numbers" in message
    assert_denormals()  # this thread's mode is its own
    assert in_thread(assert_denormals) is None


def test_a_thread_inherits_the_mode_of_the_one_that_starts_it():
    import torch

    def starts_another():
        torch.set_flush_denormal(True)
        return in_thread(assert_denormals)

    assert isinstance(in_thread(starts_another), NondeterministicCpuError)
