"""Owners that wait beyond grace, or not at all, are accused."""

from collections.abc import Callable

import pytest

from atoll.p2p.round.exchange import Exchange
from atoll.p2p.simulation.plan import Plan, parse_faults
from atoll.p2p.simulation.world import run_seed

Reductions = Callable[..., list[object]]


def never_over(exchange: Exchange) -> float:
    return exchange.started_at + (1e6 if exchange.start else 0.0)


def test_waiting_beyond_grace_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exchange, "grace_ends", property(never_over))
    rules = {v.rule for seed in range(1, 16) for v in run_seed(Plan(5, 5, parse_faults("slow")), seed).violations}
    assert "grace" in rules


def test_reducing_before_all_are_there_is_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Reductions = Exchange.reductions
    monkeypatch.setattr(Exchange, "reductions", lambda self, now, _: honest(self, now, lambda _peer: False))
    rules = {v.rule for seed in range(1, 4) for v in run_seed(Plan(5, 5, frozenset()), seed).violations}
    assert "grace" in rules
