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


def test_a_frozen_round_contributes_what_there_is(make_run, ranks, tmp_path):
    run = make_run(run={"rounds": 2})
    swarm = swarm_of(run)

    def freeze(progress: Progress) -> Order:
        return Order.FREEZE if progress.inner_step == 2 else Order.CONTINUE

    slow, quick = train(swarm, run, ranks, tmp_path, [freeze, go_on])
    assert [progress.inner_step for progress in slow.progress] == [1, 2, 1, 2]
    assert swarm.round == 2
    assert swarm.tokens == 2 * sum(port.progress[-1].tokens for port in (slow, quick))


def test_a_rebase_drops_the_inner_steps_and_takes_the_latest_state(make_run, ranks, tmp_path):
    run = make_run(run={"rounds": 1})
    swarm = swarm_of(run, 1)
    orders = iter([Order.CONTINUE, Order.REBASE, *[Order.CONTINUE] * 4])
    port, = train(swarm, run, ranks, tmp_path, [lambda _: next(orders)])
    assert [progress.inner_step for progress in port.progress] == [1, 2, 1, 2, 3, 4]
    assert swarm.tokens == port.progress[-1].tokens == 4 * 4 * 16


def test_a_port_that_fails_ends_every_worker_with_its_own_error(make_run, ranks, tmp_path):
    run = make_run(run={"rounds": 2})

    def fail(_: Progress) -> Order:
        raise ConnectionError("the daemon is gone")

    with pytest.raises(ConnectionError, match="the daemon is gone"):
        train(swarm_of(run), run, ranks, tmp_path, [go_on, fail])


def test_a_damaged_checkpoint_costs_the_moments_and_says_so(make_run, ranks, tmp_path):
    run = make_run(run={"rounds": 2})
    swarm = swarm_of(run, 1)
    train(swarm, run, ranks, tmp_path, [stop_at(swarm.parent, 3)])
    for file in tmp_path.glob("peer-0/checkpoint-*/*.safetensors"):
        file.write_bytes(b"")
    port, = train(swarm, run, ranks, tmp_path)
    assert port.progress[0].inner_step == 1
    assert "damaged" in port.progress[0].notice
    assert swarm.round == 2
