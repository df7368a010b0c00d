"""NumPy picks its machine code by CPU. Codecs, averages and outer steps give the same bytes on every choice."""

import json
import os
import subprocess
import sys

import pytest

PORTABLE = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"
AVX2 = "X86_V4 AVX512_ICL AVX512_SPR"

SCRIPT = """
import json
import numpy as np
from blake3 import blake3
from numpy._core._multiarray_umath import __cpu_features__
from atoll.protocol import known_answer
from atoll.protocol.codecs.registry import CODECS
from atoll.protocol.outer_step import PartReducer, step_part

hasher = {name: blake3() for name in (*CODECS, "average", "step")}
for numel in (1, 15, 255, 257, 5000, 65_537, 100_003):
    params, momentum = known_answer.numbers(numel, 3), np.zeros(numel, np.float32)
    reducer = PartReducer(numel)
    for weight in (1, 1000, 123_457):
        values = known_answer.numbers(numel, weight)
        for name, codec in CODECS.items():
            data = codec.encode(values)
            hasher[name].update(data)
            hasher[name].update(codec.decode(data, numel).tobytes())
        reducer.add(weight, values)
    hasher["average"].update(reducer.average().tobytes())
    for _ in range(5):
        params, momentum = step_part(params, momentum, reducer.average(), learning_rate=0.7, momentum_factor=0.9)
    hasher["step"].update(params.tobytes() + momentum.tobytes())
known_answer.check()
print(json.dumps({"features": __cpu_features__, "digests": {name: h.hexdigest() for name, h in hasher.items()}}))
"""

GOLDEN = {
    "fp32": "e2225b6368a08ff37d44b318666984b834cd09ed62420a976cfe0887dec5de6c",
    "fp16": "0ce5c9bde3eecb8094814f72d3f030dc365b2e1ff52c487b6b66925465022256",
    "int8": "9489ee23256d0da501c9cc54cc0be2fe73b6c8f4eabef722fb187779259cd6a7",
    "top8": "024ce827c36846d82c5f92cf2443355c22ed84c15f014810d46b311ac2eeaa05",
    "average": "23be934995cd72647592abdc01617767cd5145c845ea36494e4a98989d3a042c",
    "step": "e82d19763ef61181125bea5244c149a608579000a8ed734c481f652dd366e90d",
}


def run(disabled):
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONWARNINGS": "ignore"}
    argv = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize("disabled", ["", AVX2, PORTABLE], ids=["native", "AVX2 at most", "portable"])
def test_every_dispatch_path_gives_the_written_digests(disabled):
    result = run(disabled)
    for feature in disabled.split():  # NumPy ignores names that it does not know: see that it took effect
        assert not result["features"].get(feature, False)
    assert result["digests"] == GOLDEN
