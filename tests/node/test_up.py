"""A real daemon without a trainer: light, alone on its home, listening on one port, gone when it is killed."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from atoll.node.exit_codes import ExitCode


class Daemon:
    """`atoll up` as a process of its own, and what it has printed."""

    def __init__(self, home, *words):
        command = [sys.executable, "-m", "atoll.node", "up", "--home", str(home.root), *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = []

    def wait_for(self, words):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if words in line:
                return line
        raise AssertionError(self.lines)

    def family(self):
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def finish(self):
        output, _ = self.process.communicate(timeout=15)
        self.lines += output.splitlines()
        return self.process.returncode


@pytest.fixture
def start(home):
    """Start daemons on the home; whatever is left of them ends with the test."""
    started = []

    def begin(*words):
        started.append(Daemon(home, *words))
        return started[-1]

    yield begin
    for daemon in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in daemon.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        daemon.process.communicate()


def all_end(processes, timeout_s):
    deadline = time.monotonic() + timeout_s
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_bootstrap_node_lives_lightly_and_comes_back_as_the_same_peer(start, atoll, one_sentence, home):
    daemon = start("--no-trainer", "--loopback")
    address = daemon.wait_for("listening on").split("listening on ")[1].strip()

    status = json.loads(atoll("status", "--json", "--home", home.root).stdout)
    assert status["addresses"] == [address]
    assert address.endswith("/p2p/" + status["peer_id"])
    assert (status["round"], status["run_id"], status["state_digest"], status["reason"]) == (0, None, None, None)
    assert atoll("id", "--home", home.root).stdout.strip() == status["peer_id"]

    family = daemon.family()
    assert sum(process.memory_full_info().pss for process in family) < 200e6
    listening = {connection.laddr for process in family for connection in process.net_connections("inet")
                 if connection.status == psutil.CONN_LISTEN or connection.type == 2}
    assert listening == {("127.0.0.1", status["port"])}
    for process in family:
        assert status["peer_id"] not in " ".join(process.cmdline()[1:])

    one_sentence(atoll("up", "--home", home.root), ExitCode.ALREADY_RUNNING)

    daemon.process.send_signal(signal.SIGKILL)
    assert all_end(family, 10), "a killed daemon leaves nothing behind"

    again = start()
    assert again.wait_for("listening on").split("listening on ")[1].strip() == address
    done = atoll("down", "--home", home.root)
    assert (done.returncode, done.stdout) == (0, "the daemon has ended.\n")
    assert again.finish() == ExitCode.OK
    assert not home.runtime.exists()
    assert not [line for line in daemon.lines + again.lines if "Traceback" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_within_ten_seconds(start, number):
    daemon = start("--no-trainer", "--loopback")
    daemon.wait_for("listening on")
    family = daemon.family()
    started = time.monotonic()
    daemon.process.send_signal(number)
    assert daemon.finish() == ExitCode.OK
    assert time.monotonic() - started < 10
    assert all_end(family, 1)


def test_a_taken_port_is_named_and_waited_for(start, home):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = start("--no-trainer", "--loopback", "--port", port)
        assert f"port {port}" in daemon.wait_for("taken")
    daemon.wait_for("listening on")


def test_a_bootstrap_peer_that_nobody_is_gets_a_sentence_and_the_end_its_exit_code(start, atoll, home):
    peer = atoll("id", "--home", home.root).stdout.strip()
    other = "12D3KooWDFrBTnF2CMBT2reGdxESCVqrYPgtjvH7cAKVENjscPni"
    daemon = start("--no-trainer", "--loopback", "--bootstrap", f"/ip4/127.0.0.1/tcp/9/p2p/{other}")
    assert peer in daemon.wait_for("atoll: peer")
    assert "127.0.0.1 port 9 refuses the connection" in daemon.wait_for("refuses")
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.finish() == ExitCode.NETWORK
