"""One peer's network half: transport, discovery, outer state and round, joined in one asyncio loop.

Drives `round.Round` (which decides) by carrying out its effects: messages over `Links`, arithmetic in `Workshop`,
durability in `RunStore`. Knows NumPy vectors, not models; the node puts it into a process and connects the trainer.
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from atoll.p2p import boot, report
from atoll.p2p.blobs import BlobStore
from atoll.p2p.discovery import Discovery
from atoll.p2p.fetch import Fetcher
from atoll.p2p.links import Links
from atoll.p2p.round.effects import Commit, Discard, Effect, Freeze, KeepParts, Note, Reduce, Save, Send, SendBlob, Step
from atoll.p2p.round.round import Round
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.p2p.transport.hivemind import HivemindTransport
from atoll.p2p.transport.port import TransportError
from atoll.p2p.workshop import OuterState, Workshop
from atoll.protocol import canonical, known_answer
from atoll.protocol.certificate import Certificate, Contribution
from atoll.protocol.certificate import digest as check_digest
from atoll.protocol.digest import ZERO_DIGEST, Digest
from atoll.protocol.errors import AtollError, MismatchError, NonFiniteError
from atoll.protocol.identity import Identity, PeerId, peer_name
from atoll.protocol.manifest import Manifest
from atoll.protocol.messages import Blob, BlobKind, Get, Message, seal, unseal
from atoll.protocol.outer_step import assert_denormals

_log = logging.getLogger(__name__)
T = TypeVar("T")
DISK_PAUSE_S = 1.0


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
        self.round: Round | None = None
        self.run_id: Digest = ZERO_DIGEST
        self.state_digest: Digest | None = None
        self.failure: AtollError | None = None
        self.disk_problem = ""
        self.notes: dict[str, str] = {}
        self.history: list[LogEntry] = []
        self._workshop: Workshop
        self._fetcher = Fetcher(self._ask, self._reachable)
        self._effects: asyncio.Queue[list[Effect]] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()
        self._state_thread = ThreadPoolExecutor(1, "outer-state", assert_denormals)
        self._codec_thread = ThreadPoolExecutor(1, "codec", assert_denormals)
        self._contributing: Digest | None = None
        self._round_began, self._up_mark, self._down_mark = time.monotonic(), 0, 0

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
        await self._disk(boot.keep_manifest, self.store, manifest, genesis)
        await boot.fetch_missing(self._fetcher, manifest, self.store, self.blobs)
        resumed = await self._disk(boot.resume, self.store, self.blobs, manifest)
        self._workshop, self.history, self.state_digest = resumed.workshop, resumed.history, resumed.digest
        now = time.monotonic()
        exchange = manifest.draft.exchange
        self.round = Round(
            self.identity,
            resumed.chain,
            exchange,
            rounds=manifest.draft.run.rounds,
            trains=self.settings.trains,
            now=now,
        )
        self._round_began = now
        self._start_tasks()
        vote, own = self.store.vote(), self.store.contribution()
        if vote is not None and vote[0] == resumed.chain.tip.id:
            self._do(self.round.restore(vote[1], vote[2], now))
        if own is not None and own[0] == resumed.chain.tip.id:
            self._do(self.round.contributed(now, own[0], own[1].root, own[1].tokens, own[2]))
        for peer in await self.transport.connected():
            self._do(self.round.greet(time.monotonic(), peer))
        self.observer.state_changed()

    def _start_tasks(self) -> None:
        self.discovery = Discovery(
            self.transport,
            self.transport,
            self.identity,
            self.run_id,
            trains=self.settings.trains,
            found=self._found,
            wall_clock=self.transport.time_s,
        )
        for task in (self._carry_out(), self._keep_time(), self.discovery.run()):
            self._spawn(task)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self, drain_s: float = 3.0) -> None:
        """Say goodbye, remember peers, stop p2pd. What is on disk is enough to come back."""
        if self.round is not None:
            self._do(self.round.leave(time.monotonic()))
            with contextlib.suppress(TimeoutError):  # a peer that takes no goodbye notices all the same
                async with asyncio.timeout(drain_s):
                    await self._effects.join()
                    await self.links.flush()
            self._remember_peers()
        for task in self._running:
            task.cancel()
        await self._stack.aclose()
        self._state_thread.shutdown(wait=True)
        self._codec_thread.shutdown(wait=True)

    # What the node asks for.

    def outer(self) -> OuterView:
        """The outer state in force. Raises RuntimeError before `enter` has returned."""
        if self.round is None or self.state_digest is None:
            raise RuntimeError("no outer state is held yet")
        state = self._workshop.state
        return OuterView(state.parent, state.round, state.tokens, self.round.finished, self.state_digest, state.params)

    async def contribute(self, parent: bytes, tokens: int, steps: int, vector: npt.NDArray[np.float32]) -> None:
        """Encode and announce this peer's pseudo-gradient under `parent`; `(numel,) float32`.

        Ignored if the round is over or a contribution is fixed already. Raises NonFiniteError, ValueError.
        """
        if (
            self.round is None
            or parent != self.round.chain.tip.id
            or self.identity.peer_id in self.round.decree.exchange.heads
        ):
            return
        if tokens < 1 or steps < 1 or vector.shape != (self._workshop.layout.numel,):
            raise ValueError(f"not a contribution: {tokens} tokens, {steps} steps, {vector.shape} elements")
        if self._contributing == parent:
            return
        self._contributing = parent  # immutable from here on: a restarted trainer does not get a second one
        try:
            root, leaves = await self._disk(self._workshop.encode, parent, vector, pool=self._codec_thread)
        except NonFiniteError:
            self._do(self.round.nothing_to_contribute(time.monotonic(), parent))
            raise
        own = Contribution(self.identity.peer_id, root, tokens)
        await self._disk(self.store.save_contribution, parent, own, leaves)
        self._do(self.round.contributed(time.monotonic(), parent, root, tokens, leaves))

    def nothing_to_contribute(self, parent: bytes) -> None:
        """The trainer has taken no step under `parent` and waits for the next state."""
        if self.round is not None and self.identity.peer_id not in self.round.decree.exchange.heads:
            self._do(self.round.nothing_to_contribute(time.monotonic(), parent))

    def progress(self, parent: bytes, inner_step: int, inner_steps: int, tokens: int) -> None:  # noqa: ARG002
        """How far the trainer is; travels with the next READY."""
        if self.round is not None and parent == self.round.chain.tip.id:
            self.round.inner_step = inner_step

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
        if isinstance(message, Get):
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
        if self._fetcher.arrived(blob.digest, payload) or self.round is None:
            return
        leaves = None
        if blob.content is BlobKind.LEAVES:
            tree = canonical.decode(payload, limit=len(payload))
            leaves = tuple(check_digest(item) for item in tree) if isinstance(tree, tuple) else None
        await self._disk(self.blobs.put, blob.content, blob.parent or self.round.chain.tip.id, blob.digest, payload)
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
            self._send(peer, Blob(get.content, get.digest, None))
        else:
            self.links.send_blob(peer, Blob(get.content, get.digest, size, wanted=True))

    def _ask(self, peer: PeerId, kind: BlobKind, digest: Digest) -> None:
        self._send(peer, Get(kind, digest))

    async def _reachable(self) -> list[PeerId]:
        try:
            return await self.transport.connected()
        except TransportError:
            return []

    # Carrying out what the round asks for.

    def _do(self, effects: list[Effect]) -> None:
        self._changed.set()
        if effects:
            self._effects.put_nowait(effects)

    async def _carry_out(self) -> None:
        """Effects in order; what takes long runs beside and answers with an event. A Save is awaited."""
        while True:
            effects = await self._effects.get()
            for effect in effects:
                if isinstance(effect, Save):
                    await self._disk(self._save, effect)
                else:
                    self._perform(effect)
            self._effects.task_done()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(effect.to, effect.message)
            case SendBlob():
                self.links.send_blob(effect.to, effect.blob)
            case Freeze():
                self.observer.freeze(effect.parent)
            case Reduce():
                self._spawn(self._reduce(effect))
            case Step():
                self._spawn(self._step(effect))
            case Commit():
                self._spawn(self._commit(effect.certificate))
            case Discard():
                self.blobs.discard_results(effect.parent)
            case KeepParts():
                self.blobs.retain(BlobKind.PART, effect.parents)
            case Note():
                self._note(effect.code, effect.message)

    def _save(self, effect: Save) -> None:
        self.blobs.sync(effect.results)
        self.store.save_vote(effect.parent, effect.promised, effect.accepted)

    async def _reduce(self, effect: Reduce) -> None:
        result, bad = await self._disk(
            self._workshop.reduce, effect.parent, effect.part, effect.sources, pool=self._codec_thread
        )
        if self.round is not None:
            roots = tuple(source.root for source in effect.sources)
            peers = tuple(source.peer for source in bad)
            self._do(self.round.reduced(time.monotonic(), effect.parent, effect.part, result, roots, peers))

    async def _step(self, effect: Step) -> None:
        chunks = await self._disk(
            self._workshop.step, effect.parent, effect.part, effect.result, pool=self._state_thread
        )
        if self.round is not None:
            self._do(self.round.stepped(time.monotonic(), effect.parent, effect.part, effect.result, chunks))

    async def _commit(self, certificate: Certificate) -> None:
        if self.round is None or self.manifest is None:
            return
        try:
            await self._disk(self._workshop.commit, certificate, pool=self._state_thread)
        except MismatchError as error:
            self.failure = error
            return
        now = time.monotonic()
        entry = LogEntry(
            certificate,
            now - self._round_began,
            self.links.up_bytes - self._up_mark,
            self.links.down_bytes - self._down_mark,
        )
        self._round_began, self._up_mark, self._down_mark = now, self.links.up_bytes, self.links.down_bytes
        await self._disk(self.blobs.sync, [part.digest for part in certificate.value.parts])
        await self._disk(self.store.append, entry)
        self.history.append(entry)
        self.state_digest = certificate.value.state
        if certificate.value.round % self.manifest.draft.exchange.checkpoint_every == 0:
            await self._disk(self._checkpoint, self._workshop.state, pool=self._state_thread)
        self._do(self.round.committed(time.monotonic(), certificate))
        self.observer.state_changed()

    def _checkpoint(self, state: OuterState) -> None:
        self.store.save_state(state.parent, state.vectors)

    def _send(self, peer: PeerId, message: Message) -> None:
        self.links.send(peer, seal(message, self.run_id, self.identity))

    async def _keep_time(self) -> None:
        """Tick the round when it is due; every event moves the deadline."""
        if self.round is None:
            return
        while True:
            self._changed.clear()
            now = time.monotonic()
            self.round.rate_bps = int(self.links.rate_bps)
            with contextlib.suppress(TimeoutError):  # nothing happened before the deadline: that is the tick
                async with asyncio.timeout(max(0.0, self.round.deadline(now) - now)):
                    await self._changed.wait()
                    continue
            effects = self.round.tick(time.monotonic())
            if effects:
                self._effects.put_nowait(effects)

    async def _disk(self, work: Callable[..., T], *args: Any, pool: ThreadPoolExecutor | None = None) -> T:
        """Run work that writes in a thread; a full disk pauses it, with that reason, until there is space."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = await loop.run_in_executor(pool, lambda: work(*args))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self.disk_problem = (
                    f"the disk under {self.settings.run_folder} is full: free some space, it goes on by itself."
                )
                await asyncio.sleep(DISK_PAUSE_S)
            else:
                self.disk_problem = ""
                return result

    def _note(self, code: str, message: str) -> None:
        if code == "nondeterministic_cpu":
            self.failure = MismatchError(message)
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
