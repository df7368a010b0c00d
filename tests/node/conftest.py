"""Homes with short paths, command lines as real processes, and a small honest p2p service."""

import asyncio
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from atoll.node.paths import Home


@pytest.fixture
def home():
    """A prepared home whose sockets fit beside it."""
    with tempfile.TemporaryDirectory(prefix="atoll-test-") as folder:
        home = Home(Path(folder) / "h")
        home.prepare()
        yield home


@pytest.fixture
def atoll(tmp_path):
    """Run a command line in a bare environment; the finished process."""

    def run(*words, env=None, timeout=30, **options):
        bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "user"), **(env or {})}
        return subprocess.run([sys.executable, "-m", "atoll.node", *map(str, words)], capture_output=True, text=True,
                              env=bare, timeout=timeout, check=False, **options)

    return run


@pytest.fixture
def one_sentence():
    """Check that a process failed with this exit code and one line on stderr; the line."""

    def check(done, code):
        lines = done.stderr.strip().splitlines()
        assert done.returncode == code, done
        assert len(lines) == 1, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert lines[0].startswith("atoll"), lines
        return lines[0]

    return check


@dataclass
class FakeOuter:
    parent: bytes
    round: int
    params: np.ndarray
    tokens: int = 0
    finished: bool = False


@dataclass
class FakeService:
    """Holds a state; whoever contributes gets the next one: params - vector."""

    numel: int = 5
    outer_state: FakeOuter = None
    contributions: list = field(default_factory=list)
    reports: list = field(default_factory=list)
    idle: list = field(default_factory=list)
    host: object = None
    advances: bool = True

    def __post_init__(self):
        self.outer_state = FakeOuter(b"p0", 0, np.arange(self.numel, dtype=np.float32))

    def outer(self):
        return self.outer_state

    async def contribute(self, parent, tokens, steps, vector):
        self.contributions.append((parent, tokens, steps, vector.copy()))
        if self.advances:
            self.advance(vector)

    def advance(self, vector=0.0):
        now = self.outer_state
        self.outer_state = FakeOuter(f"p{now.round + 1}".encode(), now.round + 1, now.params - vector)
        self.host.state_changed()

    def nothing_to_contribute(self, parent):
        self.idle.append(parent)

    def progress(self, parent, inner_step, inner_steps, tokens):
        self.reports.append((parent, inner_step, inner_steps, tokens))

    def status(self):
        return {"state": "TRAIN", "round": self.outer_state.round, "reason": None, "warnings": []}

    def peers(self):
        return []

    def rounds(self):
        return [{"round": number} for number in range(1, self.outer_state.round + 1)]

    def live_addresses(self):
        return ["/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWDFrBTnF2CMBT2reGdxESCVqrYPgtjvH7cAKVENjscPni"]


@pytest.fixture
def fake_service():
    return FakeService


@pytest.fixture
async def serving(home):
    """Start hosts: `await serving(service)` gives a listening ServiceHost; all end with the test."""
    from atoll.node.service_host import ServiceHost

    tasks = []

    async def start(service, *, held=True):
        home.runtime.mkdir(mode=0o700, exist_ok=True)
        host = ServiceHost(home.service_socket)
        service.host = host
        task = asyncio.create_task(host.server.run())
        tasks.append(task)
        await host.server.listening.wait()
        host.attach(service)
        if held:
            host.hold()
        host.task = task
        return host

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
