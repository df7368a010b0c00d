"""Real daemons on loopback: commands run as a user runs them, on a small corpus, and nothing may be left behind."""

import collections
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tomlkit

from atoll.node import config
from atoll.node.client import Client
from atoll.node.demo.processes import LOOPBACK, free_ports, kill_trees, process_tree
from atoll.node.lock import read_holder
from atoll.node.paths import Home
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import Identity, peer_name

COMMAND = (sys.executable, "-P", "-m", "atoll.node")
SMALL_MODEL = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 32, "tie_word_embeddings": True,
}
# L is below the bound that the manifest's default keeps (here 12 s), or the tests of FORKs would take minutes: where
# the trainers load for long on a busy machine, the very first round may FORK. Tests count FORKs from there.
SHORT_ROUNDS = {
    "grace_s": 3.0, "min_round_s": 1.0, "ballot_timeout_s": 1.5, "heartbeat_s": 0.4, "gone_after_s": 3.0,
    "fork_after_s": 5.0, "admit_after": 1,
}
CHAINED = ("round", "parent", "certificate", "state_digest", "contributors", "electorate", "empty", "tokens", "fork")
LITTER = ((Path("/dev/shm"), "*"), (Path("/tmp"), "hivemind-*"))


class Atoll:
    """The command line, and the daemons that a test has started with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[subprocess.Popen] = []

    def run(self, *arguments, timeout=120.0):
        """Run a command to its end."""
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self.folder,
        )

    def json(self, *arguments, timeout=120.0):
        """The one JSON object that a command prints, which must succeed."""
        done = self.run(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def start(self, *arguments, prefix=()):
        """Start a command that goes on; what it prints goes to `output.txt` in the test's folder."""
        with (self.folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [*prefix, *COMMAND, *map(str, arguments)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.folder,
            )
        self._started.append(process)
        return process

    def status(self, home):
        """What `atoll status --json` says, or an empty round where nobody answers."""
        done = self.run("status", "--home", home, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else {"state": None, "round": -1, "state_digest": None}

    def sign(self, owner, **tables):
        """A signed run with settings of its own, as a person would make it from a draft; the manifest's path."""
        draft, manifest = self.folder / "draft" / "run.toml", self.folder / "draft" / "run.manifest"
        draft.parent.mkdir()
        assert self.run("run", "new", "--home", owner, "--out", draft).returncode == 0
        document = tomlkit.parse(draft.read_text())
        for table, values in {"data": {"source": "local"}, **tables}.items():
            document[table] |= values
        draft.write_text(tomlkit.dumps(document))
        signed = self.run("run", "sign", draft, "--home", owner)
        assert signed.returncode == 0, signed.stderr
        return manifest

    def wait(self, what, condition, timeout=90.0):
        """Wait for a condition on running daemons, whose only event is a changed answer."""
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}\n{self.output()}"
            time.sleep(0.3)
        return found

    def interrupt(self, process, timeout=12.0):
        """Ctrl-C; the seconds until the process has ended."""
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout)
        return time.monotonic() - started

    def output(self):
        file = self.folder / "output.txt"
        return file.read_text(errors="replace")[-4000:] if file.exists() else ""

    def processes(self):
        """Live processes whose command line or environment names this test's folder, but those of the test itself."""
        mark, found = os.fsencode(self.folder), []
        for process in psutil.process_iter():
            try:
                files = (Path(f"/proc/{process.pid}/{name}") for name in ("cmdline", "environ"))
                if any(mark in file.read_bytes() for file in files) and self._is_other(process):
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    @staticmethod
    def _is_other(process):
        return process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE

    def close(self):
        roots = [psutil.Process(started.pid) for started in self._started if started.poll() is None]
        children = [child for root in roots for child in root.children(recursive=True)]
        for process in [*roots, *children, *self.processes()]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for started in self._started:
            started.wait(10)


class Peer:
    """One ordinary daemon of a `Swarm`."""

    def __init__(self, index, home, port, host, prefix):
        self.index, self.home, self.port, self.host, self.prefix = index, home, port, host, prefix
        self.name = peer_name(Identity.load_or_create(home.identity).peer_id)
        self.status = {}  # the last that was seen
        self.tree = []  # the daemon's processes, as of the last look

    @property
    def pid(self):
        return read_holder(self.home)

    @property
    def address(self):
        return f"/ip4/{self.host}/tcp/{self.port}/p2p/{self.name}"

    def look(self):
        """Ask for its status now; an empty one where nobody answers."""
        try:
            self.status = Client(self.home, timeout_s=2.0).status()
        except AtollError:
            self.status = {}
        return self.status

    def rounds(self):
        return Client(self.home).rounds()

    @property
    def round(self):
        return self.status.get("round", -1)

    @property
    def contributes(self):
        """Its trainer is up and it is where its neighbours are, as far as one look can tell."""
        return self.status.get("state") in ("TRAIN", "EXCHANGE", "VOTED", "APPLY") and self.status["inner_steps"] > 0

    def __repr__(self):
        words = {key: self.status.get(key) for key in ("state", "round", "forks", "ballot", "live_peers", "reason")}
        return f"peer {self.index} {words}"


class Swarm:
    """Daemons of one endless run with short rounds, to be killed and started again. Peer 1 is the most senior voter
    and the bootstrap of all others. What is seen of any of them is held against the first invariant throughout.
    """

    def __init__(self, atoll, corpus, places, exchange):
        """`places`: host and command prefix of each peer; host None means loopback."""
        self._atoll, self.peers = atoll, []
        self.digests = collections.defaultdict(set)  # state digests seen, by certificate
        for index, ((host, prefix), port) in enumerate(zip(places, free_ports(len(places)), strict=True), start=1):
            home = Home(atoll.folder / f"peer-{index}")
            home.prepare()
            where = {"loopback": True} if host is None else {"hosts": (host,), "nat": False}
            config.remember(home, {"port": port, "threads": 1, "data": (str(corpus),), **where})
            self.peers.append(Peer(index, home, port, host or LOOPBACK, prefix))
        self.manifest = atoll.sign(
            self.peers[0].home.root,
            run={"electorate": [p.name for p in self.peers], "bootstrap": [self.peers[0].address], "rounds": 0},
            model={"config": SMALL_MODEL},
            data={"source": "local", "sequence_length": 16, "evaluation_tokens": 16},
            inner={"steps": 2, "batch_sequences": 1, "warmup_steps": 0, "schedule": "constant"},
            exchange=SHORT_ROUNDS | exchange,
        )
        self.numel = self.manifest.with_suffix(".genesis").stat().st_size // 4

    def start(self, *peers):
        for peer in peers:
            self._atoll.start("up", "--run", self.manifest, "--home", peer.home.root, prefix=peer.prefix)

    def start_all(self):
        self.start(self.peers[0])
        self._atoll.wait("the first peer listens", lambda: self.look(self.peers[0])[0].get("addresses"), 60)
        self.start(*self.peers[1:])
        self.wait("all vote and train", lambda: self.whole() and min(p.round for p in self.peers) >= 1)

    def look(self, *peers):
        """Ask these peers, or all of them; one state per certificate is all that may ever be seen."""
        seen = [peer.look() for peer in peers or self.peers]
        for status in seen:
            if status.get("state_digest"):
                self.digests[status["parent"], status["round"]].add(status["state_digest"])
        assert all(len(digests) == 1 for digests in self.digests.values()), self.digests
        return seen

    def wait(self, what, condition, timeout=150.0, pause_s=0.1):
        """Look at everybody again and again until the condition holds; the seconds that took."""
        started = time.monotonic()
        while not (self.look() and condition()):
            assert time.monotonic() < started + timeout, f"not within {timeout:.0f} s: {what}\n{self.peers}"
            time.sleep(pause_s)
        return time.monotonic() - started

    def whole(self):
        """Everybody is a voter, as everybody sees it."""
        return all(len(peer.status.get("electorate", ())) == len(self.peers) for peer in self.peers)

    def catch(self, what, condition, peers, timeout=120.0):
        """Wait for the moment at which `condition(peer)` holds for one of `peers`, looking often, and return that
        peer; its processes are known then, so that a kill comes at once.
        """
        deadline = time.monotonic() + timeout
        for peer in peers:
            peer.tree = process_tree(peer.pid)
        for peer in itertools.cycle(peers):
            if self.look(peer)[0] and condition(peer):
                return peer
            assert time.monotonic() < deadline, f"never within {timeout:.0f} s: {what}\n{self.peers}"
            time.sleep(0.002)
        return None

    def kill(self, *peers):
        """SIGKILL these daemons with all that they have started, all at once."""
        doomed = [process for peer in peers for process in peer.tree]
        for process in doomed:
            kill_quietly(process)
        doomed += kill_trees([pid for peer in peers if (pid := peer.pid)])
        marks = {os.fsencode(peer.home.root) for peer in peers}

        def left():
            return [p for p in self._atoll.processes() if any(mark in command_line(p) for mark in marks)]

        while doomed := left():
            for process in doomed:
                kill_quietly(process)
        for peer in peers:
            peer.status, peer.tree = {}, []

    def go_on(self, what, survivors, rounds=2, timeout=45.0):
        """These peers reach `rounds` more certificates; the seconds until the first and until the last of them has."""
        self.look(*survivors)
        begin = max(peer.round for peer in survivors)
        started, first = time.monotonic(), None
        while min(peer.round for peer in survivors) < begin + rounds:
            self.look(*survivors)
            if first is None and max(peer.round for peer in survivors) > begin:
                first = time.monotonic() - started
            assert time.monotonic() < started + timeout, f"{what}: not on within {timeout:.0f} s\n{self.peers}"
            time.sleep(0.05)
        return first, time.monotonic() - started

    def agree(self, *peers):
        """Wait until these peers, or all, are at the same round, then their `rounds` must be the same; the rows."""
        peers = peers or self.peers
        self.wait("one tip", lambda: min(p.round for p in peers) >= max(p.round for p in peers) - 1 >= 0)
        told = [peer.rounds() for peer in peers]
        common = min(map(len, told))
        for number, row in enumerate(told[0][:common], start=1):
            same = {key: row[key] for key in CHAINED}
            assert row["round"] == number
            assert all({key: other[number - 1][key] for key in CHAINED} == same for other in told)
            assert self.digests[row["certificate"], number] <= {row["state_digest"]}
        assert common >= max(map(len, told)) - 2
        return told[0][:common]

    def close(self):
        """SIGTERM to all, again to those that still say goodbye, kill the rest, remove the sockets of the killed."""
        pids = [pid for peer in self.peers if (pid := peer.pid)]
        left = [process for pid in pids for process in process_tree(pid)]
        for patience_s in (6, 3):
            for process in left:
                if process.pid in pids:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.terminate()
            _, left = psutil.wait_procs(left, patience_s)
        kill_trees(pids)
        for peer in self.peers:
            peer.home.close_runtime()


def kill_quietly(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def command_line(process):
    try:
        return os.fsencode(" ".join(process.cmdline()))
    except psutil.Error:
        return b""


@pytest.fixture
def swarm_of(atoll, corpus):
    """`(count) -> Swarm` on loopback, or `([(host, prefix), …]) -> Swarm` elsewhere; ended after the test."""
    made = []

    def make(places, **exchange):
        places = [(None, ())] * places if isinstance(places, int) else places
        made.append(Swarm(atoll, corpus, places, exchange))
        made[-1].start_all()
        return made[-1]

    try:
        yield make
    finally:
        for swarm in made:
            swarm.close()


@pytest.fixture
def atoll(tmp_path):
    """The command line in a folder of its own; afterwards no process, socket or shared memory of it is left."""
    before = litter()
    command = Atoll(tmp_path)
    try:
        yield command
        deadline = time.monotonic() + 5
        while (left := command.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"left running: {[' '.join(process.cmdline())[:120] for process in left]}"
    finally:
        command.close()
    assert litter() <= before, f"left behind: {sorted(litter() - before)}"
    sockets = [Home(key.parent).runtime for key in tmp_path.rglob("identity.key")]
    assert not [folder for folder in sockets if folder.exists()]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of small text files: quick to read, and easy to learn something from."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        verse = "".join(f"On line {line} of page {number} the ring of islands grows again.\n" for line in range(60))
        (folder / f"page-{number:02}.txt").write_text(verse)
    return folder


def litter():
    return {str(file) for folder, pattern in LITTER for file in folder.glob(pattern)}
