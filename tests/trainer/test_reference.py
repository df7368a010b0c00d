"""The real loop, run by two peers, against a plain single-process reference; and against itself, resumed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.protocol.identity import Identity
from atoll.trainer.genesis import read_vector
from atoll.trainer.local_sync import LocalOuterSync, LocalSwarm
from atoll.trainer.outer_sync import Order, Progress
from atoll.trainer.rank import RankSettings, build_loop
from atoll.trainer.shared_sync import SharedSync

PEERS = [Identity(bytes([number]) * 32).peer_id for number in (1, 2)]

OrderOf = Callable[[Progress], Order]


def go_on(_: Progress) -> Order:
    return Order.CONTINUE


def swarm_of(run: Any, peers: int = 2) -> LocalSwarm:
    genesis = read_vector(run.genesis, run.manifest.genesis.numel)
    return LocalSwarm(run.manifest.draft, genesis, run.manifest.run_id, peers)


def train(
    swarm: LocalSwarm, run: Any, ranks: Any, folder: Path, orders: Sequence[OrderOf] = ()
) -> list[LocalOuterSync]:
    """Every peer's real loop in this process, until the swarm is finished or stops."""
    ports = []
    bodies = []
    for number in range(swarm.workers):
        settings = RankSettings(
            rank=0,
            world_size=1,
            local_rank=0,
            store_file=Path("unused"),
            manifest=run.manifest_file,
            tokenizer=None,
            data=(run.corpus,),
            peer_id=PEERS[number],
            folder=folder / f"peer-{number}",
        )
        port = LocalOuterSync(swarm, number, orders[number] if orders else go_on)
        loop = build_loop(run.manifest, settings, ranks)
        bodies.append(lambda loop=loop, port=port: loop.run(SharedSync(port, ranks)))
        ports.append(port)
    swarm.run(bodies)
    return ports


@pytest.mark.parametrize("outer", [{"learning_rate": 1.0, "momentum": 0.0}, {"learning_rate": 0.7, "momentum": 0.9}])
def test_two_peers_end_where_a_plain_single_process_reference_ends(outer, make_run, ranks, plain_reference, tmp_path):
    run = make_run(outer=outer)
    swarm = swarm_of(run)
    ports = train(swarm, run, ranks, tmp_path)
    expected = plain_reference(run.manifest.draft, run.genesis, run.corpus, PEERS, tmp_path)
    moved = np.abs(expected - np.fromfile(run.genesis, "<f4")).max()
    assert moved > 1e-3
    assert np.abs(swarm.params - expected).max() < 1e-6
    losses = [[(e.round, e.loss) for e in port.evaluations] for port in ports]
    assert losses[0] == losses[1]
    assert [number for number, _ in losses[0]] == [0, 3]
    assert losses[0][1][1] < losses[0][0][1]


def stop_at(round_parent: bytes | None, step: int) -> OrderOf:
    def order(progress: Progress) -> Order:
        return Order.STOP if progress.parent == round_parent and progress.inner_step == step else Order.CONTINUE

    return order


def test_a_run_that_stops_between_rounds_and_goes_on_ends_in_the_same_bytes(make_run, ranks, tmp_path):
    run = make_run(run={"rounds": 4})
    whole = swarm_of(run)
    train(whole, run, ranks, tmp_path / "whole")
    halves = swarm_of(run)
    halves.stop_at = 2
    train(halves, run, ranks, tmp_path / "halves")
    assert halves.round == 2
    halves.stop_at = None
    train(halves, run, ranks, tmp_path / "halves")
    assert halves.round == 4
    assert halves.params.tobytes() == whole.params.tobytes()


def test_a_peer_that_stops_amid_a_round_goes_on_at_the_next_step(make_run, ranks, tmp_path):
    run = make_run(run={"rounds": 2})
    whole = swarm_of(run, 1)
    train(whole, run, ranks, tmp_path / "whole")
    cut = swarm_of(run, 1)
    train(cut, run, ranks, tmp_path / "cut", [stop_at(cut.parent, 3)])
    assert cut.round == 0
    (port,) = train(cut, run, ranks, tmp_path / "cut")
    assert [progress.inner_step for progress in port.progress][:2] == [4, 1]
    assert cut.params.tobytes() == whole.params.tobytes()
