"""The summary's figures follow their definitions, and anything short of success is named."""

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from atoll.node.demo.cost import ddp_bytes_per_peer, reduction
from atoll.node.demo.outcome import Outcome
from atoll.node.demo.plan import DemoPlan
from atoll.node.demo.snapshot import Snapshot, read_snapshot
from atoll.node.demo.text import bytes_text, sparkline

PEERS = [
    Snapshot(index, f"id-{index}", state="FINISHED", round=8, up_bytes=10_000_000, tokens=99, state_digest="ab" * 32)
    for index in (1, 2, 3, 4)
]
GOOD = Outcome(DemoPlan(), numel=1_000_000, peers=PEERS, evaluations={0: 5.5, 4: 3.0, 8: 2.5}, seconds=80.0)


def test_a_good_run_has_no_complaints_and_prints_exactly_the_promised_keys():
    assert GOOD.complaints() == []
    assert list(json.loads(json.dumps(GOOD.json()))) == [
        "peers", "rounds", "killed", "initial_loss", "final_loss", "tokens", "bytes_sent", "reduction_vs_ddp",
        "state_digests", "seconds",
    ]
    assert GOOD.json()["state_digests"] == {peer.peer_id: "ab" * 32 for peer in PEERS}


@pytest.mark.parametrize(("change", "words"), [
    ({"evaluations": {0: 2.5, 8: 2.5}}, "did not fall"),
    ({"evaluations": {0: 5.5, 7: 2.5}}, "not measured"),
    ({"peers": [*PEERS[:3], replace(PEERS[3], state_digest="cd" * 32)]}, "2 different states"),
    ({"peers": [*PEERS[:3], replace(PEERS[3], round=7)]}, "peer 4 has done 7 of 8 rounds"),
    ({"peers": [replace(peer, state="GONE") for peer in PEERS]}, "no peer lives"),
    ({"faults": ["peer 2 has ended: out of memory"]}, "out of memory"),
    ({"plan": DemoPlan(kill=1)}, "0 of 1 peers were killed"),
])
def test_whatever_is_short_of_success_is_named(change, words):
    assert words in " ".join(replace(GOOD, **change).complaints())


def test_killed_peers_count_neither_as_survivors_nor_in_the_bytes():
    outcome = replace(GOOD, plan=DemoPlan(kill=1), peers=[*PEERS[:3], replace(PEERS[3], state="KILLED", round=3)])
    assert outcome.complaints() == []
    assert outcome.json()["killed"] == 1
    assert len(outcome.json()["state_digests"]) == 3
    assert outcome.json()["bytes_sent"] == 30_000_000


def test_data_parallelism_sends_two_thirds_of_the_way_round_a_ring_of_three_twice():
    assert ddp_bytes_per_peer(3, numel=300, steps=10) == 2 * 2 / 3 * 4 * 300 * 10
    assert ddp_bytes_per_peer(1, numel=300, steps=10) == 0
    assert reduction(3, numel=300, steps=10, sent_per_peer=160) == 100
    assert reduction(1, numel=300, steps=10, sent_per_peer=160) is None
    assert GOOD.reduction_vs_ddp == 2 * 3 / 4 * 4 * 1_000_000 * 160 / 10_000_000


def test_the_page_shows_losses_perplexities_and_every_digest():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(GOOD.page())
    text = console.export_text()
    for words in ("5.500 → 2.500", f"{math.exp(5.5):,.1f} → {math.exp(2.5):,.1f}", "…id-4", "ab" * 16, "96 times less"):
        assert words in text


def test_a_status_with_missing_or_absurd_values_is_read_without_harm():
    odd = read_snapshot(1, "id", {"state": None, "round": -3, "loss": math.nan, "tokens_per_s": "many", "warnings": 7})
    assert odd == Snapshot(1, "id")
    status = {"state": "FAILED", "reason": {"code": "x", "message": "why"}, "evaluations": ({"round": 0, "loss": 5},)}
    known = read_snapshot(2, "id", status)
    assert (known.state, known.reason, known.evaluations) == ("FAILED", "why", {0: 5.0})


def test_numbers_are_shown_short():
    assert [bytes_text(count) for count in (0, 999, 1000, 123_456, 99_500_000, 2.5e12)] == [
        "0 B", "999 B", "1 kB", "123 kB", "99.5 MB", "2.5 TB",
    ]
    assert sparkline([3.0, 2.0, 1.0]) == "█▅▁"
    assert sparkline([1.0, 1.0], unicode=False) == "__"
    assert len(sparkline([float(value) for value in range(1000)])) == 40
