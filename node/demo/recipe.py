"""The demo's run: a small Llama on bytes, in the terms of an ordinary draft.

Measured on two cores: four peers take eight rounds of twenty steps in about a minute and a half, and plain averaging
beats Nesterov on runs as short as this. Called by the swarm, which signs the draft with peer 1's key.
"""

from collections.abc import Sequence
from typing import Any

from atoll.node.demo.plan import DemoPlan
from atoll.node.draft import MODEL_CONFIG

SEQUENCE_LENGTH = 128
BATCH_SEQUENCES = 16
_LONG_RUN_ROUNDS = 64


def demo_draft(plan: DemoPlan, peers: Sequence[str], bootstrap: Sequence[str]) -> dict[str, Any]:
    """The draft, as a tree for TOML, of a demo among `peers` (PeerIDs as text, most senior first).

    A run without an end has no length for a schedule to follow, so its learning rate is constant after the warm-up.
    """
    steps = plan.rounds * plan.inner_steps or _LONG_RUN_ROUNDS * plan.inner_steps
    return {
        "run": {
            "name": "demo",
            "owner": peers[0],
            "rounds": plan.rounds,
            "electorate": list(peers[:plan.voters]),
            "bootstrap": list(bootstrap),
        },
        "model": {"architecture": "LlamaForCausalLM", "config": dict(MODEL_CONFIG), "tokenizer": "bytes"},
        "data": {"source": "local" if plan.data else "stdlib", "sequence_length": SEQUENCE_LENGTH},
        "inner": {
            "steps": plan.inner_steps,
            "batch_sequences": BATCH_SEQUENCES,
            "schedule": "cosine" if plan.rounds else "constant",
            "warmup_steps": min(20, steps // 8),
        },
        "outer": {"learning_rate": 1.0, "momentum": 0.0},
        "exchange": {"contribution_codec": "int8", "gather_codec": "int8", "grace_s": 60.0},
    }
