"""The watch sees what is wrong: each fault planted in the protocol code is accused under its property."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from atoll.p2p import workshop
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round import synod
from atoll.p2p.round.core import Core
from atoll.p2p.round.effects import Save
from atoll.p2p.round.exchange import Shape
from atoll.p2p.simulation.plan import Plan, parse_faults
from atoll.p2p.simulation.world import run_seed
from atoll.protocol import outer_step

Plant = Callable[[pytest.MonkeyPatch], None]


def forget_to_save(patch: pytest.MonkeyPatch) -> None:
    def remember(core: Core, acceptor: synod.Acceptor, results: tuple[bytes, ...] = ()) -> None:
        core.decree.acceptor = core.memory[core.tip.id] = acceptor

    patch.setattr(Core, "remember", remember)


def save_without_bytes(patch: pytest.MonkeyPatch) -> None:
    def remember(core: Core, acceptor: synod.Acceptor, results: tuple[bytes, ...] = ()) -> None:
        core.decree.acceptor = core.memory[core.tip.id] = acceptor
        core.out.append(Save(core.tip.id, acceptor))

    patch.setattr(Core, "remember", remember)


def one_is_a_quorum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(electorates, "is_quorum", lambda electorate, voters: bool(voters))


def divide_by_more(patch: pytest.MonkeyPatch) -> None:
    class Reducer(outer_step.PartReducer):
        def average(self) -> Any:
            self._weight += 1
            return super().average()

    patch.setattr(workshop, "PartReducer", Reducer)


def weigh_alike(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shape, "weight", lambda *_: 2)


def take_a_step_twice(patch: pytest.MonkeyPatch) -> None:
    honest = workshop.Workshop.commit

    def commit(self: workshop.Workshop, certificate: Any) -> None:
        honest(self, certificate)
        self.state.params[0] += 1

    patch.setattr(workshop.Workshop, "commit", commit)


def evict_at_once(patch: pytest.MonkeyPatch) -> None:
    honest = electorates.successor

    def successor(before: electorates.Standings, *args: Any) -> electorates.Standings:
        return honest(replace(before, idle=frozenset(before.decided_by)), *args)

    patch.setattr(electorates, "successor", successor)


@pytest.mark.parametrize(
    ("plant", "properties"),
    [
        (forget_to_save, {"durable vote", "durable promise"}),
        (save_without_bytes, {"durable bytes"}),
        (one_is_a_quorum, {"quorum", "agreement"}),
        (divide_by_more, {"exactness"}),
        (weigh_alike, {"exactness"}),
        (take_a_step_twice, {"same tip, same digest"}),
        (evict_at_once, {"electorate"}),
    ],
)
def test_a_planted_fault_is_accused(plant: Plant, properties: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    plan, accused = Plan(5, 6, parse_faults("crash,loss,leave,gone")), set()
    for seed in range(1, 13):
        accused |= {violation.rule for violation in run_seed(plan, seed).violations}
        if accused & properties:
            return
    pytest.fail(f"nothing of {properties} was accused, but {accused or 'nothing at all'}")
