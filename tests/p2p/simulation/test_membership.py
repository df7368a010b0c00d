"""Who is left out of the electorate, or kept in it, against what its leaders knew is accused."""

from collections.abc import Callable
from typing import Any

import pytest

from atoll.p2p.round import certify
from atoll.p2p.round.core import Core
from atoll.p2p.round.decree import Decree
from atoll.p2p.simulation.plan import Plan, parse_faults
from atoll.p2p.simulation.world import World, run_seed
from atoll.protocol.certificate import Certificate
from atoll.protocol.standing import Standing

Plant = Callable[[pytest.MonkeyPatch], None]


def without_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Decree, "_of_use", lambda *_: [])


def without(kind: Standing) -> Plant:
    """A peer never says this about itself."""
    honest = Core.standing

    def standing(core: Core) -> Standing:
        said = honest(core)
        return Standing.VOTER if said is kind else said

    return lambda patch: patch.setattr(Core, "standing", standing)


def everybody_attends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "attendees", lambda core: set(core.tip.standings.decided_by))


def nobody_attends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "attendees", lambda _: set())
    patch.setattr(certify, "wrongly_evicted", lambda *_: [])


def go_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "departed", lambda *_: True)


@pytest.mark.parametrize(
    ("plant", "faults", "peers"),
    [
        (without_records, "none", 5), (without(Standing.JOIN), "none", 5), (without(Standing.LEAVE), "leave", 5),
        (without(Standing.CANNOT_VOTE), "slow", 5), (everybody_attends, "crash,gone", 5), (nobody_attends, "slow", 5),
        (go_at_once, "leave", 2),
    ],
    ids=["no records", "no JOIN", "no LEAVE", "no CANNOT_VOTE", "all attend", "none attends", "goes at once"],
)
def test_a_planted_fault_is_accused(plant: Plant, faults: str, peers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    plan, accused = Plan(peers, 8, parse_faults(faults)), set()
    for seed in range(1, 61):
        accused |= {violation.rule for violation in run_seed(plan, seed).violations}
        if "membership" in accused:
            return
    pytest.fail(f"membership was not accused, but {accused or 'nothing at all'}")


def test_every_kind_of_record_and_tickets_come_into_values() -> None:
    plan, found = Plan(6, 8, parse_faults("leave,slow,join,crash")), set()
    tickets = False
    for seed in range(1, 31):
        world = World(plan, seed)
        assert not world.run().violations
        links: list[Any] = [place.link for place in world.oracle.places.values()]
        records = [record for link in links if isinstance(link, Certificate) for record in link.value.records]
        found |= {record.kind for record in records}
        tickets |= any(record.ticket for record in records)
        if tickets and found == {Standing.JOIN, Standing.LEAVE, Standing.CANNOT_VOTE}:
            return
    pytest.fail(f"only {found}, tickets: {tickets}")
