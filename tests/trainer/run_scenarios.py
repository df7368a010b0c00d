"""Peers of several ranks: runs each scenario of a file through `run_rank` and writes what came out of it.

Started as a subprocess by `test_many_ranks`, which compares the outcomes of one, two and three ranks. Importing torch
costs seconds: this process imports it once, before any thread runs, and forks every rank.
"""

import dataclasses
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import transformers.models.llama.modeling_llama  # noqa: F401 - so that no rank has to

from atoll.protocol.errors import AtollError
from atoll.protocol.manifest import Manifest, ModelSettings
from atoll.trainer.flatten import canonical_entries
from atoll.trainer.local_sync import LocalOuterSync, LocalSwarm
from atoll.trainer.model import meta_model, model_config, shard
from atoll.trainer.rank import RankSettings, run_rank
from atoll.trainer.ranks import joined_ranks

LARGE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 3, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32_001, "tie_word_embeddings": False,
}


def main(groups: list[dict[str, Any]]) -> int:
    for group in groups:
        children = [fork_rank(group, rank) for rank in range(group["world"])]
        statuses = [os.waitpid(child, 0)[1] for child in children]  # each of them has to be waited for
        if any(statuses):
            return 1
    return 0


def fork_rank(group: dict[str, Any], rank: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        run_group(group, rank)
    except BaseException:  # noqa: BLE001  printed; a forked child must not return into its parent's code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_group(group: dict[str, Any], rank: int) -> None:
    for scenario in group["scenarios"]:
        folder = Path(scenario["folder"])
        settings = RankSettings(
            rank=rank,
            world_size=group["world"],
            local_rank=rank,
            store_file=folder / "store",
            manifest=Path(scenario["manifest"]),
            tokenizer=None,
            data=tuple(map(Path, scenario["data"])),
            peer_id=bytes.fromhex(scenario["peer_id"]),
            folder=folder / "trainer",
            evaluate_every_rounds=scenario.get("evaluate_every_rounds", 0),
            micro_batch_sequences=scenario.get("micro_batch_sequences", 0),
        )
        outcome: dict[str, Any] = {"error": None}
        try:
            outcome |= as_lead(settings, scenario, folder) if rank == 0 else run_rank(settings, refuse) or {}
        except AtollError as error:
            outcome["error"] = f"{error.code}: {error}"
        (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))


    shards = Path(group["shards"])
    with joined_ranks(rank, group["world"], rank, shards / "store") as ranks:
        model = shard(meta_model(model_config(ModelSettings(config=LARGE), 257, 256)), ranks)
        shapes = {name: [list(p.shape), list(p.to_local().shape)] for name, p in model.named_parameters()}
        order = [[entry.name, list(entry.shape), entry.start] for entry in canonical_entries(model)]
    (shards / f"shards-{rank}.json").write_text(json.dumps({"shapes": shapes, "order": order}))


def refuse() -> Any:
    raise AssertionError("only rank 0 makes a port")


def as_lead(settings: RankSettings, scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    manifest = Manifest.parse(settings.manifest.read_bytes())
    swarm = LocalSwarm(manifest.draft, np.fromfile(scenario["genesis"], "<f4"), manifest.run_id, 1)
    port = LocalOuterSync(swarm, 0)
    swarm.run([lambda: run_rank(settings, lambda: port)])
    swarm.params.tofile(folder / "params")
    return {
        "round": swarm.round,
        "tokens": swarm.tokens,
        "losses": [evaluation.loss for evaluation in port.evaluations],
        "evaluated_tokens": [evaluation.tokens for evaluation in port.evaluations],
        "progress": [{**dataclasses.asdict(progress), "parent": progress.parent.hex()} for progress in port.progress],
    }


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
