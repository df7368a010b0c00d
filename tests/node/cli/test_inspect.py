"""`atoll inspect verify` in a real process: 0 for what holds, 10 and words for what does not; never a trace."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest

from atoll.node.exit_codes import ExitCode
from atoll.p2p.run_store import LogEntry, RunStore


@pytest.fixture
def kept(home, told):
    """A home that is on the run `told`; its run's folder."""
    home.current_run.write_text(told.manifest.run_id.hex() + "\n")
    return told.write(home.run_folder(told.manifest.run_id))


def verify(atoll, *words, code):
    done = atoll("inspect", "verify", *words)
    assert done.returncode == code, done
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_an_honest_home_is_told_in_numbers(atoll, home, kept, told):
    done = verify(atoll, "--home", home.root, code=ExitCode.OK)
    assert "valid: 7 rounds, 1 FORK, 2 voters" in done.stdout
    assert f"{told.chain.tip.tokens:,} tokens" in done.stdout
    assert told.chain.tip.state.hex() in done.stdout
    assert "4 states with the certified digest; round 7 was replayed" in done.stdout
    deep = verify(atoll, "--home", home.root, "--deep", code=ExitCode.OK)
    assert "rounds 1 to 7 were replayed" in deep.stdout


def test_json_has_it_all(atoll, home, kept, told):
    tree = json.loads(verify(atoll, "--home", home.root, "--json", code=ExitCode.OK).stdout)
    assert tree["valid"] is True
    assert (tree["problems"], tree["notices"]) == ([], [])
    assert (tree["rounds_verified"], tree["forks"], tree["links_verified"]) == (7, 1, 8)
    assert tree["tokens"] == told.chain.tip.tokens
    assert tree["state_digest"] == told.chain.tip.state.hex()
    assert tree["run_id"] == told.manifest.run_id.hex()
    assert tree["states"] == {"verified": 4, "rounds_replayed": 1, "first_round": 7, "last_round": 7}


def test_a_log_elsewhere_needs_its_manifest(atoll, one_sentence, kept, tmp_path):
    copy = tmp_path / "copied.log"
    copy.write_bytes((kept / "log").read_bytes())
    sentence = one_sentence(atoll("inspect", "verify", "--log", copy), ExitCode.USAGE)
    assert "--manifest FILE" in sentence
    done = verify(atoll, "--log", copy, "--manifest", kept / "manifest", code=ExitCode.OK)
    assert "valid: 7 rounds" in done.stdout
    assert "disk" not in done.stdout
    (tmp_path / "manifest").write_bytes((kept / "manifest").read_bytes())
    assert json.loads(verify(atoll, "--log", copy, "--json", code=ExitCode.OK).stdout)["states"] is None


def test_a_tampered_log_is_told_by_round_rule_and_byte(atoll, kept, told):
    links = list(told.links)
    votes = list(links[2].votes)
    votes[0] = dataclasses.replace(votes[0], signature=bytes(64))
    links[2] = dataclasses.replace(links[2], votes=tuple(votes))
    RunStore(kept).rewrite([LogEntry(link, 1.0, 0, 0) for link in links])
    done = verify(atoll, "--log", kept / "log", code=ExitCode.NOT_VALID)
    assert done.stdout.startswith("round 3: the vote of 12D3")
    assert "is not signed by that key" in done.stdout
    assert "NOT VALID: all before it holds, 2 rounds; 5 links behind it not checked." in done.stdout
    tree = json.loads(verify(atoll, "--log", kept / "log", "--json", code=ExitCode.NOT_VALID).stdout)
    assert (tree["valid"], tree["rounds_verified"], tree["links_unchecked"]) == (False, 2, 5)
    assert [(p["round"], p["link"]) for p in tree["problems"]] == [(3, links[2].id.hex())]
    assert tree["problems"][0]["byte"] > 0


def test_another_runs_log_is_told(atoll, kept, book, tmp_path):
    other = book(seed=9)
    other.certify()
    folder = other.write(tmp_path / "other")
    done = verify(atoll, "--log", folder / "log", "--manifest", kept / "manifest", code=ExitCode.NOT_VALID)
    assert "another run's log" in done.stdout


def test_a_torn_end_is_a_fault_in_a_copy_and_a_crash_in_a_home(atoll, home, kept):
    whole = (kept / "log").read_bytes()
    (kept / "log").write_bytes(whole[:-3])
    done = verify(atoll, "--log", kept / "log", code=ExitCode.NOT_VALID)
    assert "behind round 6" in done.stdout
    assert "torn" in done.stdout
    done = verify(atoll, "--home", home.root, code=ExitCode.OK)
    assert "note: the log" in done.stdout
    assert "cuts it off" in done.stdout
    assert (kept / "log").read_bytes() == whole[:-3], "nothing is mended by looking"
    (kept / "log").write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    done = verify(atoll, "--home", home.root, code=ExitCode.NOT_VALID)
    assert "at byte 0 is damaged" in done.stdout


def test_a_home_without_a_round_is_valid_and_one_without_a_run_is_told(atoll, one_sentence, home, kept, tmp_path):
    (kept / "log").unlink()
    assert "no round has been certified" in verify(atoll, "--home", home.root, code=ExitCode.OK).stdout
    sentence = one_sentence(atoll("inspect", "verify", "--home", tmp_path / "none"), ExitCode.USAGE)
    assert "on no run" in sentence


def test_a_damaged_state_fails_the_home_and_not_the_log(atoll, home, kept):
    path = max((kept / "state").iterdir())
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    done = verify(atoll, "--home", home.root, code=ExitCode.NOT_VALID)
    assert "the state of round 7 on this disk is not the certified one" in done.stdout
    assert "the log holds (7 rounds)" in done.stdout
    assert path.exists()


@pytest.mark.parametrize(("words", "expected"), [
    (["--log", "nowhere/log"], "is no file"),
    (["--log", "."], "is no file"),
    (["--log", "x" * 5000], "is no file"),
    (["--log", "a\nb"], "is no file"),
    (["--manifest", "m"], "--manifest belongs to --log"),
    (["--log", "l", "--deep"], "--deep"),
    (["more"], "one word too many"),
])
def test_a_command_line_that_makes_no_sense(atoll, one_sentence, tmp_path, words, expected):
    done = atoll("inspect", "verify", *words, "--home", tmp_path / "h")
    assert expected in one_sentence(done, ExitCode.USAGE)


def test_a_manifest_that_is_none_gets_one_sentence(atoll, one_sentence, kept, tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(os.urandom(300))
    for manifest in (bad, tmp_path, tmp_path / "none"):
        done = atoll("inspect", "verify", "--log", kept / "log", "--manifest", manifest)
        assert str(manifest) in one_sentence(done, ExitCode.BAD_INPUT)


def test_no_garbage_ends_in_a_trace(kept, tmp_path):
    """Bytes flipped, cut and doubled at random, framed anew or not: always a verdict."""
    from atoll.node.inspect_log import verify_file
    from atoll.protocol.digest import content_digest

    dice, whole, path = random.Random(5), (kept / "log").read_bytes(), tmp_path / "log"
    for turn in range(300):
        bent = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(bent))
            bent[at] = dice.randrange(256)
        if turn % 3:  # a right checksum for the first entry, so that its content is what is looked at
            length = int.from_bytes(whole[:8], "little")
            bent[:8] = whole[:8]
            bent[8:16] = content_digest(bytes(bent[16:16 + length]))[:8]
        if turn % 7 == 0:
            del bent[dice.randrange(len(bent)):]
        path.write_bytes(bent)
        verdict = verify_file(path, kept / "manifest")
        assert verdict.valid == (not verdict.problems)
        json.dumps(verdict.tree())
    path.write_bytes(b"")
    assert verify_file(path, kept / "manifest").valid


def test_it_loads_nothing_heavy(home, kept):
    code = (
        "import sys; from atoll.node.cli.main import main; rc = main(sys.argv[1:]); "
        "print(rc, [n for n in ('torch', 'hivemind', 'libp2p', 'transformers') if n in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "inspect", "verify", "--home", str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
