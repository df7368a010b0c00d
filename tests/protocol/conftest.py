"""Property tests of the protocol are seeded and leave no files: the same examples on every run and machine."""

from collections.abc import Callable

import hypothesis
import numpy as np
import pytest

from atoll.protocol.codecs.port import Vector

hypothesis.settings.register_profile(
    "protocol", derandomize=True, deadline=None, database=None, max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("protocol")


def _vector(family: str, numel: int, seed: int) -> Vector:
    rng = np.random.default_rng(seed)
    values = {
        "gaussian": lambda: rng.standard_normal(numel) * 1e-3,
        "student-t3": lambda: rng.standard_t(3, numel) * 1e-4,
        "sparse": lambda: np.where(rng.random(numel) < 0.01, rng.standard_normal(numel), 0),
        "constant": lambda: np.full(numel, rng.standard_normal()),
        "zero": lambda: np.zeros(numel) * rng.choice([1, -1], numel),
        "denormal": lambda: rng.integers(-(2**23), 2**23, numel) * 2.0**-149,
        "tiny": lambda: rng.standard_normal(numel) * 2.0 ** rng.integers(-110, -90, numel),
        "huge": lambda: rng.uniform(-1, 1, numel) * 2.0**40,
        "all scales": lambda: rng.choice([-1, 1], numel) * 2.0 ** rng.uniform(-149, 40, numel),
    }[family]()
    return np.asarray(values, np.float32)


@pytest.fixture
def vector() -> Callable[[str, int, int], Vector]:
    """`vector(family, numel, seed)`: a float32 vector from one of the families that codecs must bear."""
    return _vector
