"""Real daemons on loopback: commands run as a user runs them, on a small corpus, and nothing may be left behind."""

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

from atoll.node.paths import Home

COMMAND = (sys.executable, "-P", "-m", "atoll.node")
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

    def start(self, *arguments):
        """Start a command that goes on; what it prints goes to `output.txt` in the test's folder."""
        with (self.folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
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
