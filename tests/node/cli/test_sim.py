"""`atoll sim`: what it prints and how it ends."""

import json
import subprocess
import sys

import pytest

from atoll.node.cli.main import main
from atoll.node.exit_codes import ExitCode
from atoll.p2p.round import electorate as electorates

SMALL = ["sim", "--peers", "3", "--rounds", "2", "--jobs", "1"]


def test_json_is_one_object_with_the_documented_keys(capsys):
    assert main([*SMALL, "--seeds", "2", "--seed", "4", "--faults", "none", "--json"]) == ExitCode.OK
    tree = json.loads(capsys.readouterr().out)
    assert set(tree) == {
        "seeds", "rounds_committed", "forks", "faults_injected", "violations", "virtual_seconds", "wall_seconds",
        "messages_per_peer", "bytes_per_peer",
    }
    assert (tree["seeds"], tree["rounds_committed"], tree["forks"], tree["violations"]) == (2, 4, 0, [])


def test_a_person_gets_a_table_and_a_summary(capsys):
    assert main([*SMALL, "--seeds", "1", "--faults", "crash"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "READY" in text
    assert "1 seeds of 3 peers: 2 rounds committed, 0 forks, 0 violations" in text


def test_a_violation_prints_what_replays_it_and_a_timeline_and_ends_with_1(capsys, monkeypatch):
    monkeypatch.setattr(electorates, "is_quorum", lambda electorate, voters: bool(voters))
    words = [*SMALL[:-2], "--seeds", "6", "--jobs", "1", "--faults", "loss,reorder"]
    assert main(words) == ExitCode.FAILED
    text = capsys.readouterr().out
    assert "VIOLATION of quorum" in text
    assert "--seeds 1 --peers 3 --rounds 2 --faults loss,reorder" in text
    assert "VOTE(0) for" in text


@pytest.mark.parametrize(
    "words", [["--faults", "flood"], ["--peers", "0"], ["--rounds", "0"], ["--seeds", "0"], ["--seed", "-1"]]
)
def test_what_makes_no_sense_is_a_usage_error(words, capsys):
    assert main(["sim", *words]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("atoll: ")


def test_it_loads_neither_torch_nor_hivemind():
    code = (
        "import sys; from atoll.node.cli.main import main;"
        "main(['sim', '--peers', '2', '--rounds', '1', '--seeds', '1', '--jobs', '1', '--json']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'hivemind', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
