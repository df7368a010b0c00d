"""Every mistake that a person can make with the command gets one sentence and its exit code, in a real process."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.node.exit_codes import ExitCode
from atoll.node.lock import DaemonLock
from atoll.node.paths import Home

HEAVY = ("torch", "hivemind", "libp2p", "transformers")


@pytest.mark.parametrize(("words", "expected"), [
    (["statsu"], "did you mean `status`?"),
    (["status", "--jsno"], "did you mean `--json`?"),
    (["run", "nwe"], "nwe"),
    (["run"], "STEP"),
    (["up", "--ranks", "two"], "two"),
    (["up", "--no-trainer", "--ranks", "0"], "`ranks` is 0"),
    (["up", "--no-trainer", "--port", "70000"], "`port` is 70000"),
    (["up", "--no-trainer", "--bootstrap", "example.org:4001"], "multiaddr"),
    (["up"], "--run"),
    (["id", "more"], "one word too many"),
])
def test_a_command_line_that_makes_no_sense(atoll, one_sentence, tmp_path, words, expected):
    done = atoll(*words, *(["--home", tmp_path / "h"] if words[0] == "up" else []))
    assert expected in one_sentence(done, ExitCode.USAGE)


@pytest.mark.parametrize(("given", "expected"), [
    ("nonsense", "neither a manifest file nor an invite"),
    ("atoll1abcdef", "paste it again"),
    ("atoll1" + "z" * 300, "paste it again"),
    ("missing/run.manifest", "does not exist"),
    (".", "is a folder"),
    ("x" * 5000, "neither a manifest file nor an invite"),
    ("", "neither a manifest file nor an invite"),
])
def test_a_run_that_is_none(atoll, one_sentence, tmp_path, given, expected):
    assert expected in one_sentence(atoll("up", "--home", tmp_path / "h", "--run", given), ExitCode.BAD_INPUT)


def test_a_manifest_file_with_other_content(atoll, one_sentence, tmp_path):
    path = tmp_path / "bad.manifest"
    for content in (b"", b"\x92\x80\xc4\x00", os.urandom(500), b"[run]\nname = 'x'\n"):
        path.write_bytes(content)
        sentence = one_sentence(atoll("up", "--home", tmp_path / "h", "--run", path), ExitCode.BAD_INPUT)
        assert str(path) in sentence


@pytest.mark.parametrize(("text", "expected"), [
    ("prot = 4001\n", "did you mean `port`?"),
    ("port = 'x'\n", "`port` must be a whole number"),
    ("port = \n", "not valid TOML"),
])
def test_a_config_with_a_mistake(atoll, one_sentence, tmp_path, text, expected):
    home = Home(tmp_path / "h")
    home.prepare()
    home.config.write_text(text)
    sentence = one_sentence(atoll("up", "--home", home.root, "--no-trainer"), ExitCode.BAD_INPUT)
    assert expected in sentence
    assert "config.toml" in sentence


@pytest.mark.parametrize("command", ["status", "peers", "rounds", "down", "invite"])
def test_a_command_that_needs_a_daemon(atoll, one_sentence, tmp_path, command):
    assert "no daemon runs" in one_sentence(atoll(command, "--home", tmp_path / "h"), ExitCode.NOT_RUNNING)


def test_a_second_daemon_on_one_home_changes_nothing(atoll, one_sentence, home):
    with DaemonLock(home):
        before = sorted(home.root.rglob("*"))
        done = atoll("up", "--home", home.root, "--no-trainer", "--port", "4001")
        assert f"pid {os.getpid()}" in one_sentence(done, ExitCode.ALREADY_RUNNING)
        assert sorted(home.root.rglob("*")) == before


def test_without_home_a_sentence_names_the_flag(atoll, one_sentence):
    for env in ({"HOME": ""}, {"HOME": "relative"}):
        assert "--home" in one_sentence(atoll("id", env=env), ExitCode.HOME)
    command = [sys.executable, "-m", "atoll.node", "id"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert "--home" in one_sentence(done, ExitCode.HOME)


def test_a_home_in_odd_places_is_made_for_its_owner_alone(atoll, tmp_path):
    home = tmp_path / "with space" / "ü" / "deep"
    env = {"HOME": "/nonexistent", "LC_ALL": "C", "TERM": "dumb"}
    done = atoll("id", "--home", home, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12D3Koo")
    assert atoll("id", "--home", home, env=env).stdout == done.stdout
    for folder in (home, home.parent, home.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600
    shown = atoll("paths", "--home", home, env=env)
    assert shown.returncode == 0
    assert "/tmp/atoll-" in shown.stdout, "sockets go where their paths are plain"


@pytest.mark.parametrize("kind", ["foreign", "file", "under-a-file"])
def test_a_home_that_cannot_be_used(atoll, one_sentence, tmp_path, kind):
    home = tmp_path / "h"
    if kind == "foreign" and os.geteuid() != 0:
        home = Path("/usr")  # root's, and nobody else may give files away
    elif kind == "foreign":
        home.mkdir()
        os.chown(home, 12345, 12345)
    else:
        home.write_text("")
    target = home / "below" if kind == "under-a-file" else home
    sentence = one_sentence(atoll("up", "--home", target, "--no-trainer"), ExitCode.HOME)
    assert str(home) in sentence


def test_a_damaged_key_is_named(atoll, one_sentence, home):
    home.identity.write_bytes(b"x" * 68)
    home.identity.chmod(0o600)
    assert "identity.key" in one_sentence(atoll("id", "--home", home.root), ExitCode.HOME)
    home.identity.chmod(0o644)
    assert "chmod 600" in one_sentence(atoll("id", "--home", home.root), ExitCode.HOME)


@pytest.mark.parametrize("words", [["--help"], ["up", "--help"], ["run", "sign", "--help"], ["demo", "--help"], []])
def test_help_is_help(atoll, words):
    done = atoll(*words)
    assert done.returncode == 0, done.stderr
    assert "usage: atoll" in done.stdout
    assert done.stderr == ""


def test_help_tells_every_exit_code(atoll):
    shown = atoll("--help").stdout
    for code in ExitCode:
        assert f" {code.value}  " in shown


@pytest.mark.parametrize("close", [1, 2])
def test_closed_output_is_no_accident(tmp_path, close):
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m atoll.node id --home "$1" {close}>&-', sys.executable, str(tmp_path / "h")],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_reader_that_goes_away_is_no_accident(tmp_path):
    atoll = f'"{sys.executable}" -m atoll.node'
    script = f'{atoll} --help | true; {atoll} paths --home "{tmp_path}" | head -1'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["--help"], ["status"], ["id"], ["paths"], ["rounds"], ["up", "--run", "nonsense"]])
def test_quick_commands_load_nothing_heavy(tmp_path, words):
    code = (
        "import sys; from atoll.node.cli.main import main; main(sys.argv[1:]); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_ctrl_c_ends_without_a_trace(home):
    home.log("daemon").write_text("a line\n")
    process = subprocess.Popen([sys.executable, "-m", "atoll.node", "logs", "-f", "--home", str(home.root)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "a line\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=10)
    assert process.returncode == ExitCode.INTERRUPTED
    assert complaint == "atoll: interrupted.\n"
