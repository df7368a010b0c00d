"""The demo's peers as processes: their homes and keys, the signed run, their daemons, and the end of all of it.

Each peer is an ordinary home with an ordinary `atoll up` on it, in a session of its own, so that Ctrl-C in the
terminal reaches the demo alone. A dead peer is neither restarted nor missed here; whoever starts `atoll up` on its
home brings it back. Knows neither rounds nor views; called by the show.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from atoll.node import config
from atoll.node.child import python_module
from atoll.node.demo.plan import DemoError, DemoPlan
from atoll.node.demo.processes import LOOPBACK, free_ports, kill_trees, process_tree, wait_gone
from atoll.node.demo.recipe import demo_draft
from atoll.node.lock import read_holder
from atoll.node.paths import Home
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import MANIFEST_LIMIT, Manifest

DRAIN_S = 5.5
"""Drain, end at once and kill together stay below the ten seconds within which Ctrl-C ends everything."""

_AT_ONCE_S = 1.0
_KILL_S = 2.0
_SIGN_S = 120.0
_OUTPUT = "terminal"  # <home>/logs/terminal.log: what the daemon printed


@dataclass
class Peer:
    index: int
    home: Home
    name: str                  # PeerID as text
    port: int
    process: asyncio.subprocess.Process | None = None
    killed: bool = False       # by the demo itself
    reported: bool = False     # its unexpected end has been told

    @property
    def pid(self) -> int | None:
        """The daemon that holds this home now: the demo's child, or whoever's restarted it."""
        own = self.process.pid if self.process and self.process.returncode is None else None
        return read_holder(self.home) or own

    @property
    def ended(self) -> bool:
        """The demo's own child has ended."""
        return self.process is not None and self.process.returncode is not None


class Swarm:
    """Peers 1 … N below one folder. `prepare`, `start`, then `stop` in every case."""

    def __init__(self, plan: DemoPlan, folder: Path) -> None:
        self._plan = plan
        self.folder = folder
        self.peers: list[Peer] = []
        self._signer: asyncio.subprocess.Process | None = None

    async def prepare(self) -> Manifest:
        """Make homes and keys, write the draft, sign it with peer 1's key. Raises AtollError."""
        for index, port in enumerate(free_ports(self._plan.peers), start=1):
            home = Home(self.folder / f"peer-{index}")
            if home.root.exists():
                raise DemoError(
                    f"{home.root} is there already: name another folder with --home, "
                    f"or go on with that peer's run by `atoll up --home {home.root}`."
                )
            home.prepare()
            identity = Identity.load_or_create(home.identity)
            config.remember(home, self._settings(port))
            self.peers.append(Peer(index, home, peer_name(identity.peer_id), port))
        if len(self.peers) < self._plan.peers:
            raise DemoError(f"this machine has {len(self.peers)} free loopback ports, {self._plan.peers} are needed.")
        return await self._sign()

    @property
    def manifest_file(self) -> Path:
        return self.folder / "demo.manifest"

    async def start(self, peers: Collection[int]) -> None:
        """Start `atoll up` for these peers."""
        for peer in self.peers:
            if peer.index in peers:
                command = ("up", "--run", str(self.manifest_file), "--home", str(peer.home.root))
                with peer.home.log(_OUTPUT).open("wb") as output:
                    peer.process = await _spawn(*command, output=output.fileno())

    async def kill(self, peers: Collection[int]) -> None:
        """SIGKILL these peers, daemons and all they started, and wait until nothing of them is left."""
        chosen = [peer for peer in self.peers if peer.index in peers]
        for peer in chosen:
            peer.killed = True
        doomed = kill_trees([pid for peer in chosen if (pid := peer.pid)])
        if left := await wait_gone(doomed, _KILL_S):
            raise DemoError(f"{len(left)} killed processes still run, pid {left[0].pid} among them.")

    async def stop(self) -> None:
        """Drain every daemon on the demo's homes, kill what does not end in time, and remove its sockets."""
        signer = [self._signer.pid] if self._signer and self._signer.returncode is None else []
        pids = [pid for peer in self.peers if (pid := peer.pid)]
        everything = [process for pid in pids for process in process_tree(pid)]
        left = everything
        for patience_s in (DRAIN_S, _AT_ONCE_S):  # asked a second time, a daemon ends at once
            for pid in pids:
                if any(process.pid == pid for process in left):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
            left = await wait_gone(left, patience_s)
        doomed = kill_trees([*signer, *(process.pid for process in left)])
        await wait_gone(doomed, _KILL_S)
        for child in (self._signer, *(peer.process for peer in self.peers)):
            if child is not None:
                await child.wait()
        for peer in self.peers:
            peer.home.close_runtime()

    def last_words(self, peer: Peer) -> str:
        """Why a daemon that has ended did so, as far as it left word."""
        with contextlib.suppress(OSError, ValueError):
            failure = json.loads(peer.home.failure.read_text())
            if isinstance(failure, dict) and failure.get("message"):
                return str(failure["message"])
        try:
            lines = peer.home.log(_OUTPUT).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:400] if lines else f"exit status {peer.process.returncode if peer.process else 'unknown'}"

    def _settings(self, port: int) -> dict[str, object]:
        """What makes a plain `atoll up` on the home do the same again after the demo."""
        return {
            "port": port,
            "loopback": True,
            "ranks": self._plan.ranks,
            "threads": 1,
            "data": tuple(str(path) for path in self._plan.data),
        }

    async def _sign(self) -> Manifest:
        """`atoll run sign`, in a process of its own because genesis needs torch and the demo does not."""
        names, first = [peer.name for peer in self.peers], self.peers[0]
        draft = demo_draft(self._plan, names, [f"/ip4/{LOOPBACK}/tcp/{first.port}/p2p/{first.name}"])
        file = self.folder / "demo.toml"
        file.write_text(tomlkit.dumps(draft))
        command = ("run", "sign", str(file), "--home", str(first.home.root), "--out", str(self.manifest_file))
        self._signer = await _spawn(*command, output=asyncio.subprocess.PIPE)
        async with asyncio.timeout(_SIGN_S):
            output, _ = await self._signer.communicate()
        if self._signer.returncode:
            words = output.decode(errors="replace").strip().splitlines()
            raise DemoError(f"signing the run failed: {words[-1][:400] if words else 'without a word'}")
        with self.manifest_file.open("rb") as signed:
            return Manifest.parse(signed.read(MANIFEST_LIMIT + 1))


async def _spawn(*arguments: str, output: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *python_module("atoll.node"), *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )
