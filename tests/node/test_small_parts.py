"""Back-off, logs, exit codes, status and narration: pure or nearly so."""

import math
import os

import pytest

from atoll.node import exit_codes, logs, terminal
from atoll.node.backoff import Backoff
from atoll.node.cli.parser import amount, table
from atoll.node.errors import ChildError, HomeError
from atoll.node.exit_codes import ExitCode
from atoll.node.narrator import Narrator, evaluation_line, round_line
from atoll.node.status import TrainerHistory, assemble, explain
from atoll.p2p.transport.port import TransportError
from atoll.protocol import errors as protocol_errors
from atoll.trainer.data.errors import DataError


def test_pauses_double_and_end_and_a_healthy_life_starts_anew():
    backoff = Backoff(first_s=1, most_s=5, attempts=5, healthy_s=60)
    assert [backoff.pause(now, now + 1) for now in range(0, 20, 4)] == [1, 2, 4, 5, None]
    assert backoff.pause(100, 200) == 1


def test_ends_long_ago_do_not_count():
    backoff = Backoff(attempts=3, window_s=100)
    assert [backoff.pause(now, now) for now in (0, 1, 150, 151, 152)][:4] == [0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize(("error", "code"), [
    (protocol_errors.ManifestError("x"), 3), (protocol_errors.SignatureError("x"), 3), (HomeError("x"), 4),
    (protocol_errors.IdentityError("x"), 4), (DataError("x"), 7), (TransportError("x", "port_taken"), 8),
    (TransportError("x", "refused"), 8), (ChildError("x", "bad_data", 7), 7),
    (protocol_errors.NondeterministicCpuError("x"), 1),
    (protocol_errors.AtollError("x"), 1), (KeyError("x"), 70),
])
def test_errors_lead_to_the_codes_of_the_table(error, code):
    assert exit_codes.of(error) == code


def test_every_exit_code_is_explained():
    assert set(exit_codes.MEANINGS) == set(ExitCode)


def test_a_log_stays_bounded_and_keeps_its_end(tmp_path):
    log = logs.RotatingLog(tmp_path / "x.log", 1000)
    for number in range(500):
        log.write(f"line {number}")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    assert logs.tail(tmp_path / "x.log", 3) == ["line 497", "line 498", "line 499"]
    assert logs.tail(tmp_path / "x.log", 0) == []


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path):
    log = logs.RotatingLog(tmp_path / "missing" / "x.log", 1000)
    log.write("a")
    log.write("b")
    assert log.lost_lines == 2


def test_followed_logs_survive_rotation_and_wait_for_whole_lines(tmp_path):
    path = tmp_path / "x.log"
    path.write_text("old\n")
    follower = logs.Follower([path, tmp_path / "later.log"])
    assert follower.new_lines() == []
    with path.open("a") as file:
        file.write("one\ntw")
    assert follower.new_lines() == [(path, "one")]
    with path.open("a") as file:
        file.write("o\n")
    (tmp_path / "later.log").write_text("born\n")
    assert follower.new_lines() == [(path, "two"), (tmp_path / "later.log", "born")]
    path.rename(tmp_path / "x.log.1")
    path.write_text("new file\n")
    assert follower.new_lines() == [(path, "new file")]


def progress(round_number, loss):
    return {"round": round_number, "loss": loss, "inner_step": 1, "inner_steps": 20, "tokens_per_s": 5.0}


def test_losses_are_gathered_by_round_without_the_ones_that_are_no_number():
    history = TrainerHistory()
    for number, loss in ((0, 4.0), (0, 2.0), (0, math.nan), (1, 1.0), (None, 9.0)):
        history.take_progress(progress(number, loss))
    assert history.losses() == [
        {"round": 1, "loss": 3.0, "last": 2.0, "steps": 2}, {"round": 2, "loss": 1.0, "last": 1.0, "steps": 1},
    ]
    evaluation = {"round": 1, "loss": 2.5, "parent": b"p", "tokens": 10, "bytes": 10}
    assert history.take_evaluation(evaluation)
    assert not history.take_evaluation(evaluation), "told once"
    assert not history.take_evaluation({"round": "x"})


def test_status_has_every_key_from_the_first_second_on():
    status = assemble({}, TrainerHistory(), {"peer_id": "x"}, ["a: b"])
    assert {
        "peer_id", "addresses", "state", "reason", "run_id", "round", "state_digest", "inner_step", "loss",
        "tokens_per_s", "up_bytes", "down_bytes", "evaluations", "electorate", "members", "warnings", "parent",
        "tokens", "ballot",
    } <= set(status)
    assert (status["round"], status["state_digest"], status["loss"], status["warnings"]) == (0, None, None, ["a: b"])


def test_a_reason_always_has_a_remedy():
    assert explain(None) is None
    assert explain({"code": "port_taken", "message": "m"})["remedy"].startswith("Stop the program")
    assert explain({"code": "unheard_of", "message": "m"})["remedy"]
    assert explain({"code": "x", "message": "m", "remedy": "own"})["remedy"] == "own"


def test_a_person_is_told_of_changes_once():
    narrator = Narrator()
    taken = {"state": "CONNECTING", "run_id": "ab", "reason": {"code": "refused", "message": "nobody\nlistens"}}
    assert narrator.status_lines(taken) == ["connecting to the network", "nobody listens"]
    assert narrator.status_lines(taken) == []
    there = {"state": "TRAIN", "round": 4, "held": True, "reason": None}
    assert narrator.status_lines(there) == ["in the run, 4 rounds done"]
    assert not narrator.new_round(there)
    assert narrator.new_round({**there, "round": 5})
    assert not narrator.new_round({**there, "round": 5})


def test_lines_of_rounds_and_evaluations():
    row = {"round": 3, "contributors": [{"tokens": 1000}, {"tokens": 2000}], "seconds": 4.26, "ballot": 1}
    assert round_line(row, 2.5) == "round 3: 2 peers, 3,000 tokens, 4.3 s, ballot 1, training loss 2.500"
    told = evaluation_line({"round": 3, "loss": 0.0})
    assert told == "held-out loss after round 3: 0.0000 nats per token, perplexity 1.00"
    assert "not finite" in evaluation_line({"round": 3, "loss": math.nan})


def test_a_table_is_aligned_and_free_of_control_characters():
    text = table(("name", "n"), [("a\x1b[31m", 5), ("long name", 12345)], right=(1,))
    assert text.splitlines() == ["name           n", "a [31m         5", "long name  12345"]
    assert amount(999) == "999 B"
    assert amount(12_345_678) == "12.3 MB"


def test_words_of_strangers_become_one_plain_line():
    assert terminal.one_line("a\x1b]0;title\x07\nb\u202e\tc") == "a ]0;title b c"
    assert os.linesep not in terminal.one_line("x\r\ny")
