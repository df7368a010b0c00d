"""The ledger seen from outside: whatever is done with a residual but what rule 9 says is accused."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from atoll.p2p import workshop
from atoll.p2p.residuals import MemoryResiduals
from atoll.p2p.round.ledger import Entry, Fixed, Ledger
from atoll.p2p.simulation.plan import Plan, draw, parse_faults
from atoll.p2p.simulation.world import World
from atoll.protocol.certificate import Certificate, Contribution
from atoll.protocol.codecs.registry import codec

Plant = Callable[[pytest.MonkeyPatch], None]
FORKING = "partition,crash,gone"


def with_feedback(plan: Plan) -> Iterator[int]:
    """Seeds whose codec has error feedback."""
    for seed in range(1, 200):
        if codec(draw(plan, seed).settings.contribution_codec).error_feedback:
            yield seed


def send_it_again(patch: pytest.MonkeyPatch) -> None:
    def residues(self: Ledger, base: bytes) -> tuple[Entry | None, ...]:
        at = next(i for i, mark in enumerate(self._marks) if mark.id == base)
        return self._marks[max(0, at - 1)].residues

    patch.setattr(Ledger, "residues", residues)


def settle_what_nobody_listed(patch: pytest.MonkeyPatch) -> None:
    honest = Ledger._listed

    def listed(self: Ledger, contributions: tuple[Contribution, ...]) -> tuple[Entry | None, int | None]:
        _, index = honest(self, contributions)
        return self.entries.get(self.tip.id), index or 0

    patch.setattr(Ledger, "_listed", listed)


def never_unwind(patch: pytest.MonkeyPatch) -> None:
    def settle_at(self: workshop.Workshop, lineage: Sequence[Certificate]) -> None:
        if self.ledger is not None and lineage and self.ledger.tip.id not in {link.id for link in lineage}:
            self.ledger.settle(lineage[-1].value)

    patch.setattr(workshop.Workshop, "settle_at", settle_at)


def forget_the_rest(patch: pytest.MonkeyPatch) -> None:
    honest = MemoryResiduals.write

    def write(self: MemoryResiduals, base: bytes, rests: Iterator[Fixed]) -> None:
        honest(self, base, (rest * 0 for rest in rests))

    patch.setattr(MemoryResiduals, "write", write)


def carry_what_was_missed(patch: pytest.MonkeyPatch) -> None:
    honest = Ledger.residues

    def residues(self: Ledger, base: bytes) -> tuple[Entry | None, ...]:
        newest = max(self.entries.values(), key=lambda entry: entry.round, default=None)
        return tuple(held or newest for held in honest(self, base))

    patch.setattr(Ledger, "residues", residues)


def count_twice(patch: pytest.MonkeyPatch) -> None:
    honest = Ledger.settle

    def settle(self: Ledger, value: Any) -> None:
        honest(self, value)
        self.tip.listed[:] *= 2

    patch.setattr(Ledger, "settle", settle)


@pytest.mark.parametrize(
    ("plant", "faults"),
    [
        (send_it_again, "none"), (settle_what_nobody_listed, "slow,loss,crash"), (never_unwind, FORKING),
        (forget_the_rest, "none"), (carry_what_was_missed, "slow,loss,crash"), (count_twice, "none"),
    ],
)
def test_a_residual_gone_wrong_is_accused(plant: Plant, faults: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, accused = Plan(5, 7, parse_faults(faults)), set()
    seeds = list(with_feedback(plan))[:25]
    plant(monkeypatch)
    for seed in seeds:
        accused |= {violation.rule for violation in World(plan, seed).run().violations}
        if "ledger" in accused:
            return
    pytest.fail(f"the ledger was not accused, but {accused or 'nothing at all'}")


def test_an_honest_ledger_is_not_accused_and_residuals_are_really_carried() -> None:
    plan = Plan(5, 6)
    for seed in list(with_feedback(plan))[:3]:
        world = World(plan, seed)
        assert not world.run().violations
        assert any(rest for rests in world.watch.accounts._rests.values() for rest in rests.values())
