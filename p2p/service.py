"""One peer's network half: transport, discovery, outer state and round, joined in one asyncio loop.

Drives `round.Round` (which decides) by carrying out its effects: messages over `Links`, arithmetic in `Workshop`,
durability in `RunStore`. Knows NumPy vectors, not models; the node puts it into a process and connects the trainer.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atoll.p2p import boot, report
from atoll.p2p.blobs import BlobStore
from atoll.p2p.carrier import Carrier
from atoll.p2p.discovery import Discovery
from atoll.p2p.fetch import Fetcher
from atoll.p2p.links import Links
from atoll.p2p.round.effects import Effect
from atoll.p2p.round.round import Round
from atoll.p2p.run_store import RunStore
from atoll.p2p.transport.hivemind import HivemindTransport
from atoll.p2p.transport.port import TransportError
from atoll.protocol import canonical, known_answer
from atoll.protocol.digest import ZERO_DIGEST, Digest
from atoll.protocol.errors import AtollError
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.manifest import Manifest
from atoll.protocol.messages import Blob, BlobKind, Get, Message, seal, unseal
from atoll.protocol.read import digest as check_digest

_log = logging.getLogger(__name__)
LEAVE_S = 20.0


@dataclass(frozen=True)
class ServiceSettings:
    identity_file: Path
    run_folder: Path
    socket_prefix: str
    host_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    trains: bool = True
    upnp: bool = False
    nat: bool = True
    ticket: bytes = b""  # the run's owner lets this peer vote at once


class Observer(Protocol):
    """Who the service tells; called in its event loop, must not block."""

    def freeze(self, parent: bytes) -> None: ...
    def state_changed(self) -> None: ...


@dataclass(frozen=True)
class OuterView:
    """The outer state in force. `params` is the live vector: copy it before the event loop runs again."""

    parent: bytes
    round: int
    tokens: int
    finished: bool
    digest: bytes
    params: npt.NDArray[np.float32]


class PeerService:
    def __init__(self, settings: ServiceSettings, identity: Identity, observer: Observer) -> None:
        self.settings, self.identity, self.observer = settings, identity, observer
        self.store, self.blobs = RunStore(settings.run_folder), BlobStore(settings.run_folder / "blobs")
        self.transport: HivemindTransport
        self.links: Links
        self.discovery: Discovery | None = None
        self.manifest: Manifest | None = None
        self.run_id: Digest = ZERO_DIGEST
        self.notes: dict[str, str] = {}
        self.carrier: Carrier | None = None
        self._fetcher = Fetcher(self._ask, self._reachable)
        self._stack = contextlib.AsyncExitStack()
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()

    # Life.

    async def open(self) -> None:
        """Start transport, DHT and links. Raises TransportError for what is wrong on this machine."""
        self.transport = await HivemindTransport.create(
            identity_file=self.settings.identity_file,
            peer_id=self.identity.peer_id,
            host_maddrs=self.settings.host_maddrs,
            announce_maddrs=self.settings.announce_maddrs,
            initial_peers=self.settings.initial_peers,
            socket_prefix=self.settings.socket_prefix,
            upnp=self.settings.upnp,
            nat=self.settings.nat,
            remembered_peers=self.store.peers(),
        )
        self._stack.push_async_callback(self.transport.close)
        self.links = await self._stack.enter_async_context(Links(self.transport, self))
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())

    async def fetch_manifest(self, run_id: bytes) -> Manifest:
        """The manifest behind a run_id, from any peer, verified; waits until one has it."""
        self.run_id = run_id
        return await self._fetcher.manifest(run_id)

    async def enter(self, manifest: Manifest, genesis: Path | None) -> None:
        """Take part in a run: returns when an outer state is held and the round runs.

        Raises MismatchError if `genesis` or what lies on disk is not this run's, NondeterministicCpuError if this
        machine's arithmetic is not the protocol's.
        """
        known_answer.check()
        self.manifest, self.run_id = manifest, manifest.run_id
        carrier = Carrier(
            self, self.identity, manifest, self.store, self.blobs, trains=self.settings.trains,
            ticket=self.settings.ticket, spawn=self._spawn,
        )
        await carrier.disk(boot.keep_manifest, self.store, manifest, genesis)
        await boot.fetch_missing(self._fetcher, manifest, self.store, self.blobs)
        await carrier.open()
        self.carrier = carrier
        self._start_tasks(carrier)
        for peer in await self.transport.connected():
            self._do(carrier.round.greet(time.monotonic(), peer))
        self.observer.state_changed()

    @property
    def round(self) -> Round | None:
        """The round, once an outer state is held."""
        return self.carrier.round if self.carrier is not None else None

    def _do(self, effects: list[Effect]) -> None:
        if self.carrier is not None:
            self.carrier.do(effects)

    def _start_tasks(self, carrier: Carrier) -> None:
        self.discovery = Discovery(
            self.transport,
            self.transport,
            self.identity,
            self.run_id,
            trains=self.settings.trains,
            found=self._found,
            wall_clock=self.transport.time_s,
        )
        carrier.start()
        self._spawn(self.discovery.run())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self, drain_s: float = 3.0) -> None:
        """Say goodbye, remember peers, stop p2pd. What is on disk is enough to come back.

        A voter without whom the others are no quorum stays for the value that removes it, `LEAVE_S` at most.
        """
        if self.carrier is not None:
            self._do(self.carrier.round.leave(time.monotonic()))
            with contextlib.suppress(TimeoutError):  # then they will notice that it is gone
                async with asyncio.timeout(LEAVE_S):
                    await self._departed(self.carrier)
            with contextlib.suppress(TimeoutError):  # a peer that takes no goodbye notices all the same
                async with asyncio.timeout(drain_s):
                    await self.carrier.drained()
                    await self.links.flush()
            self._remember_peers()
        for task in self._running:
            task.cancel()
        await self._stack.aclose()
        if self.carrier is not None:
            self.carrier.close()

    async def _departed(self, carrier: Carrier) -> None:
        while carrier.failure is None and not carrier.round.departed(time.monotonic()):
            carrier.changed.clear()
            with contextlib.suppress(TimeoutError):  # who else is there may change without an event
                async with asyncio.timeout(carrier.round.settings.heartbeat_s):
                    await carrier.changed.wait()

    # What the node asks for.

    def outer(self) -> OuterView:
        """The outer state in force. Raises RuntimeError before `enter` has returned."""
        if self.carrier is None:
            raise RuntimeError("no outer state is held yet")
        state, finished = self.carrier.workshop.state, self.carrier.round.finished
        return OuterView(state.parent, state.round, state.tokens, finished, self.carrier.state_digest, state.params)

    async def contribute(self, parent: bytes, tokens: int, steps: int, vector: npt.NDArray[np.float32]) -> None:
        """Encode and announce this peer's pseudo-gradient under `parent`; `(numel,) float32`.

        Ignored if the round is over or a contribution is fixed already. Raises NonFiniteError, ValueError.
        """
        if self.carrier is None or parent != self.carrier.round.tip.base:
            return
        if tokens < 1 or steps < 1 or vector.shape != (self.carrier.workshop.layout.numel,):
            raise ValueError(f"not a contribution: {tokens} tokens, {steps} steps, {vector.shape} elements")
        await self.carrier.contribute(parent, tokens, vector)

    def nothing_to_contribute(self, parent: bytes) -> None:
        """The trainer has taken no step under `parent` and waits for the next state."""
        if self.round is not None and self.identity.peer_id not in self.round.decree.exchange.heads:
            self._do(self.round.nothing_to_contribute(time.monotonic(), parent))

    def progress(self, parent: bytes, inner_step: int, inner_steps: int, tokens: int) -> None:  # noqa: ARG002
        """How far the trainer is; travels with the next READY."""
        if self.round is not None and parent == self.round.tip.base:
            self.round.inner_step, self.round.tokens = inner_step, tokens

    def status(self) -> dict[str, Any]:
        return report.status(self)

    def peers(self) -> list[dict[str, Any]]:
        return report.peers(self)

    def rounds(self) -> list[dict[str, Any]]:
        return report.rounds(self)

    def live_addresses(self) -> list[str]:
        return report.live_addresses(self)

    # What links bring in.

    def on_message(self, peer: PeerId, data: bytes) -> None:
        try:
            message = unseal(data, self.run_id, peer)
        except AtollError as error:
            self._note("bad_message", f"{peer_name(peer)}: {error}")
            return
        if isinstance(message, Get) and message.content is not BlobKind.LINK:
            self._answer(peer, message)
        elif isinstance(message, Blob):
            if not self._fetcher.arrived(message.digest, None) and self.round is not None:
                self._do(self.round.missing(time.monotonic(), peer, message.digest))
        elif self.round is not None:
            self._do(self.round.receive(time.monotonic(), peer, message))

    def accepts(self, peer: PeerId, blob: Blob) -> bool:
        return self._fetcher.accepts(blob) or (self.round is not None and self.round.accepts(peer, blob))

    def on_bytes(self, peer: PeerId, blob: Blob) -> None:
        if self.round is not None:
            self.round.receiving(time.monotonic(), peer, blob.digest)

    async def on_blob(self, peer: PeerId, blob: Blob, payload: bytes) -> None:
        if self._fetcher.arrived(blob.digest, payload) or self.carrier is None or self.round is None:
            return
        leaves = None
        if blob.content is BlobKind.LEAVES:
            tree = canonical.decode(payload, limit=len(payload))
            leaves = tuple(check_digest(item) for item in tree) if isinstance(tree, tuple) else None
        await self.carrier.disk(self.blobs.put, blob.content, self.round.base_of(blob), blob.digest, payload)
        self._do(self.round.stored(time.monotonic(), peer, blob, leaves))

    def on_broken(self, peer: PeerId) -> None:
        if self.round is not None:
            self._do(self.round.disconnected(time.monotonic(), peer))

    def read_blob(self, digest: Digest) -> bytes:
        return self.blobs.read(digest)

    def _found(self, peer: PeerId) -> None:
        if self.round is not None:
            self._do(self.round.greet(time.monotonic(), peer))
            self._remember_peers()

    def _answer(self, peer: PeerId, get: Get) -> None:
        size = self.blobs.size(get.digest)
        if size is None:
            self.send(peer, Blob(get.content, get.digest, None))
        else:
            self.links.send_blob(peer, Blob(get.content, get.digest, size, wanted=True))

    def _ask(self, peer: PeerId, kind: BlobKind, digest: Digest) -> None:
        self.send(peer, Get(kind, digest))

    async def _reachable(self) -> list[PeerId]:
        try:
            return await self.transport.connected()
        except TransportError:
            return []

    # What the carrier needs.

    def send(self, peer: PeerId, message: Message) -> None:
        self.links.send(peer, seal(message, self.run_id, self.identity))

    def send_blob(self, peer: PeerId, blob: Blob) -> None:
        self.links.send_blob(peer, blob)

    def traffic(self) -> tuple[int, int]:
        return self.links.up_bytes, self.links.down_bytes

    def upload_rate(self) -> int:
        return int(self.links.rate_bps)

    def freeze(self, base: Digest) -> None:
        self.observer.freeze(base)

    def state_changed(self) -> None:
        self.observer.state_changed()

    def _note(self, code: str, message: str) -> None:
        if self.notes.get(code) != message:
            _log.warning("%s: %s", code, message)
        self.notes[code] = message

    def _remember_peers(self) -> None:
        if self.discovery is not None:
            names = {
                peer: [a if "/p2p/" in a else f"{a}/p2p/{peer_name(peer)}" for a in found]
                for peer, found in self.discovery.addresses.items()
            }
            self.store.save_peers([address for found in names.values() for address in found])
