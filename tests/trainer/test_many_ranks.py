"""Peers of two and three ranks, as real processes, against one rank: same data, same parameters, nobody hangs."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("run_scenarios.py")
PEER_ID = b"\x00\x24\x08\x01\x12\x20" + bytes(32)
WILD = {"learning_rate": 1e6, "clip_norm": 0.0, "warmup_steps": 0, "schedule": "constant", "batch_sequences": 3}


Scenarios = dict[str, tuple[Any, list[Path], dict[str, Any]]]


@dataclass(frozen=True)
class Started:
    folder: Path
    runs: dict[str, Any]

    def outcome(self, scenario: str, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.folder / scenario / f"outcome-{rank}.json").read_text())

    def params(self, scenario: str) -> np.ndarray:
        return np.fromfile(self.folder / scenario / "params", "<f4")


def spec(folder: Path, world: int, scenarios: Scenarios) -> dict[str, Any]:
    """What `run_scenarios` must know of some scenarios in one group of `world` ranks."""
    specs = []
    for name, (run, data, more) in scenarios.items():
        (folder / name).mkdir(parents=True)
        specs.append(
            {
                "folder": str(folder / name),
                "manifest": str(run.manifest_file),
                "genesis": str(run.genesis),
                "data": [str(path) for path in data],
                "peer_id": PEER_ID.hex(),
                **more,
            }
        )
    return {"world": world, "scenarios": specs, "shards": str(folder)}


def write_documents(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Number {number}.")
    return folder


@pytest.fixture(scope="module")
def runs(make_run) -> dict[str, Any]:
    return {
        # Five sequences a step and an odd number of them to evaluate: no two ranks share them evenly.
        "plain": make_run(inner={"batch_sequences": 5}, data={"evaluation_tokens": 16 * 7}, run={"rounds": 2}),
        "wild": make_run(inner=WILD),
        # A batch of eight where there are one to seven documents of a few bytes.
        "tiny": make_run(inner={"batch_sequences": 8, "steps": 2}, run={"rounds": 2}),
    }


@pytest.fixture(scope="module")
def started(runs, corpus, tmp_path_factory) -> dict[str, Started]:
    """All scenarios of peers with one, two and three ranks, run to their ends."""
    folder = tmp_path_factory.mktemp("ranks")
    texts = {count: write_documents(folder / f"text-{count}", count) for count in (1, 2, 3, 7)}
    plain, wild, tiny = runs["plain"], runs["wild"], runs["tiny"]
    worlds: dict[str, Scenarios] = {
        "one": {"plain": (plain, [corpus], {}), "wild": (wild, [corpus], {})},
        "two": {
            "plain": (plain, [corpus], {}),
            "micro": (plain, [corpus], {"micro_batch_sequences": 2}),
            "wild": (wild, [corpus], {}),
            "missing": (plain, [folder / "nothing"], {}),
            "documents-1": (tiny, [texts[1]], {}),
            "documents-7": (tiny, [texts[7]], {}),
        },
        "three": {
            "plain": (plain, [corpus], {"evaluate_every_rounds": 1}),
            "documents-2": (tiny, [texts[2]], {}),
            "documents-3": (tiny, [texts[3]], {}),
        },
    }
    groups = [spec(folder / name, number, scenarios) for number, (name, scenarios) in enumerate(worlds.items(), 1)]
    (folder / "groups.json").write_text(json.dumps(groups))
    subprocess.run([sys.executable, str(SCRIPT), str(folder / "groups.json")], check=True, timeout=150)
    return {name: Started(folder / name, runs) for name in worlds}


@pytest.mark.parametrize("scenario", ["plain", "micro"])
def test_two_ranks_end_where_one_does(scenario, started):
    one, two = started["one"], started["two"]
    moved = np.abs(one.params("plain") - np.fromfile(one.runs["plain"].genesis, "<f4")).max()
    assert moved > 1e-3
    assert np.abs(two.params(scenario) - one.params("plain")).max() < 1e-5
    assert two.outcome(scenario)["tokens"] == one.outcome("plain")["tokens"]


def test_three_ranks_end_where_one_does(started):
    assert np.abs(started["three"].params("plain") - started["one"].params("plain")).max() < 1e-5


def test_the_held_out_loss_is_the_same_however_many_ranks_share_the_batches(started):
    one, two, three = started.values()
    expected = one.outcome("plain")
    assert len(expected["losses"]) == 2
    for other in (two.outcome("plain"), three.outcome("plain")):
        assert other["evaluated_tokens"][0] == expected["evaluated_tokens"][0] == 16 * 7
        assert other["losses"][0] == pytest.approx(expected["losses"][0], abs=1e-5)
        assert other["losses"][-1] == pytest.approx(expected["losses"][-1], abs=1e-4)
    assert len(three.outcome("plain")["losses"]) == 3  # genesis, after round 1 because it was asked for, and the end


@pytest.mark.parametrize("world", ["one", "two"])
def test_a_step_that_is_not_finite_is_skipped_on_all_ranks_counted_and_named(world, started):
    outcome = started[world].outcome("wild")
    assert outcome["round"] == 3
    last = outcome["progress"][-1]
    assert last["skipped_steps"] > 0
    skipped = [progress for progress in outcome["progress"] if math.isnan(progress["loss"])]
    assert len(skipped) == last["skipped_steps"]
    assert all("was skipped" in progress["notice"] and "1e+06" in progress["notice"] for progress in skipped)


@pytest.mark.parametrize(("world", "count"), [("two", 1), ("three", 2), ("three", 3), ("two", 7)])
def test_a_corpus_smaller_than_a_batch_is_read_again_and_again(world, count, started):
    outcome = started[world].outcome(f"documents-{count}")
    assert outcome["round"] == 2
    assert all(math.isfinite(loss) for loss in outcome["losses"])
    assert outcome["progress"][-1]["epoch"] > 0
    assert "epoch" in outcome["progress"][0]["notice"]


def test_the_canonical_order_is_the_same_for_any_number_of_ranks(started):
    orders = [
        json.loads((started[world].folder / f"shards-{rank}.json").read_text())["order"]
        for number, world in enumerate(("one", "two", "three"), 1) for rank in range(number)
    ]
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize(("world", "count"), [("two", 2), ("three", 3)])
def test_the_shards_of_a_larger_model_are_its_rows_and_nothing_twice(world, count, started):
    ranks = [json.loads((started[world].folder / f"shards-{rank}.json").read_text())["shapes"] for rank in range(count)]
    for name, (whole, _) in ranks[0].items():
        rows = [shapes[name][1][0] for shapes in ranks]
        share = -(-whole[0] // count)
        assert rows == [max(0, min(share, whole[0] - share * rank)) for rank in range(count)], name
        assert {tuple(shapes[name][1][1:]) for shapes in ranks} == {tuple(whole[1:])}, name


def test_what_stops_rank_0_stops_the_others_with_a_sentence(started):
    two = started["two"]
    assert two.outcome("missing", 0)["error"].startswith("bad_data: ")
    assert "does not exist" in two.outcome("missing", 0)["error"]
    assert two.outcome("missing", 1)["error"].startswith("rank_lost: ")
