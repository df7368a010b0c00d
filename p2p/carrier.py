"""Carries out what the round asks for, for real: arithmetic in `Workshop`, durability in `Journal` and `RunStore`,
messages by two functions of its owner.

Effects are carried out in order; what takes long runs beside and answers the round with an event. Owned by
`PeerService`, which knows the network and the trainer; knows neither.
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from atoll.p2p import boot
from atoll.p2p.blobs import BlobStore
from atoll.p2p.journal import Journal, OwnContribution
from atoll.p2p.outer_state import OuterState
from atoll.p2p.round.chain import parent_of
from atoll.p2p.round.effects import (
    Adopt,
    Commit,
    Discard,
    Effect,
    Enter,
    Freeze,
    KeepParts,
    Note,
    Prune,
    Reduce,
    Save,
    Send,
    SendBlob,
    Step,
)
from atoll.p2p.round.exchange import Head
from atoll.p2p.round.round import Round
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.p2p.workshop import Workshop
from atoll.protocol.certificate import Certificate, Contribution
from atoll.protocol.digest import Digest
from atoll.protocol.errors import AtollError, MismatchError, MissingBytesError, NonFiniteError, SignatureError
from atoll.protocol.identity import Identity, PeerId
from atoll.protocol.manifest import Manifest
from atoll.protocol.messages import Blob, BlobKind, Message
from atoll.protocol.outer_step import assert_denormals
from atoll.protocol.standing import check_ticket

_log = logging.getLogger(__name__)
T = TypeVar("T")
DISK_PAUSE_S = 1.0


class Owner(Protocol):
    """Who the carrier works for; called in the event loop, must not block."""

    def send(self, peer: PeerId, message: Message) -> None: ...
    def send_blob(self, peer: PeerId, blob: Blob) -> None: ...
    def traffic(self) -> tuple[int, int]: ...  # bytes sent and received so far
    def upload_rate(self) -> int: ...  # bytes per second
    def freeze(self, base: Digest) -> None: ...
    def state_changed(self) -> None: ...


class Carrier:
    """Holds a round and everything of it that is on disk and in memory."""

    def __init__(
        self, owner: Owner, identity: Identity, manifest: Manifest, store: RunStore, blobs: BlobStore, *, trains: bool,
        spawn: Callable[[Coroutine[Any, Any, None]], None], ticket: bytes = b"",
    ) -> None:
        self._owner, self._identity, self._manifest, self._spawn = owner, identity, manifest, spawn
        self._store, self._blobs, self._trains, self._ticket = store, blobs, trains, ticket
        self.round: Round
        self.workshop: Workshop
        self.journal: Journal
        self.history: list[LogEntry] = []
        self.state_digest: Digest = manifest.genesis.digest
        self.failure: AtollError | None = None
        self.disk_problem = ""
        self.notes: dict[str, str] = {}
        self.changed = asyncio.Event()
        self._effects: asyncio.Queue[list[Effect]] = asyncio.Queue()
        self._state_thread = ThreadPoolExecutor(1, "outer-state", assert_denormals)
        self._codec_thread = ThreadPoolExecutor(1, "codec", assert_denormals)
        self._contributing: Digest | None = None
        self._began, self._marks = time.monotonic(), (0, 0)

    async def open(self) -> None:
        """Resume from disk. Raises MismatchError where what lies there is not this run's."""
        self.journal = await self.disk(Journal.open, self._store.journal)
        resumed = await self.disk(
            boot.resume, self._store, self._blobs, self._manifest, self.journal, self._identity.peer_id)
        self.workshop, self.history, self.state_digest = resumed.workshop, resumed.history, resumed.digest
        if self.journal.lost:
            self._note("journal_lost", "what this peer had promised is forgotten: it votes again once a certificate "
                       "names its new journal")
        now = time.monotonic()
        self._began = now
        self.round = Round(
            self._identity, resumed.chain, self._manifest.draft.exchange, journal=self.journal.id,
            memory=self.journal.acceptors, stored=self._blobs.results(), rounds=self._manifest.draft.run.rounds,
            trains=self._trains, now=now,
        )
        self.round.ticket = self._good_ticket()
        self.do(self.round.tick(now))
        self._announce()

    def _good_ticket(self) -> bytes:
        """The ticket if the run's owner signed it for this peer; one that nobody would heed is not shown around."""
        if self._ticket:
            owner, run_id = self._manifest.owner, self._manifest.run_id
            try:
                check_ticket(owner, run_id, self._identity.peer_id, self._ticket)
            except SignatureError:
                self._note("bad_ticket", "the ticket that this home keeps is not signed by the run's owner for this "
                           "peer and counts for nothing: ask for another one, and give it with --ticket")
                return b""
        return self._ticket

    def start(self) -> None:
        self._spawn(self._carry_out())
        self._spawn(self._keep_time())

    async def drained(self) -> None:
        """Until all that was asked for is carried out."""
        await self._effects.join()

    def close(self) -> None:
        """After the tasks have ended."""
        self._state_thread.shutdown(wait=True)
        self._codec_thread.shutdown(wait=True)
        if hasattr(self, "journal"):
            self.journal.close()

    def do(self, effects: list[Effect]) -> None:
        """Have effects carried out, after those before."""
        self.changed.set()
        if effects:
            self._effects.put_nowait(effects)

    # The trainer's contribution.

    async def contribute(self, base: Digest, tokens: int, vector: npt.NDArray[np.float32]) -> None:
        """Encode, journal and announce this peer's pseudo-gradient, once per base. Raises NonFiniteError."""
        if base != self.round.tip.base or self._contributing == base or base in self.journal.contributions:
            return
        self._contributing = base  # immutable from here on: a restarted trainer does not get a second one
        weight = self.round.shape.weight(tokens)
        try:
            root, leaves = await self.disk(self.workshop.encode, base, vector, weight, pool=self._codec_thread)
        except NonFiniteError:
            self.do(self.round.nothing_to_contribute(time.monotonic(), base))
            raise
        own = Contribution(self._identity.peer_id, root, tokens, self.journal.id)
        await self.disk(self.journal.save_contribution, base, OwnContribution(own, leaves))
        self.do(self.round.contributed(time.monotonic(), base, root, tokens, leaves))

    def _announce(self) -> None:
        """Say again what this peer had contributed under the base where it stands now."""
        own = self.journal.contributions.get(self.round.tip.base)
        now, base = time.monotonic(), self.round.tip.base
        if own is None:
            return
        c = own.contribution
        if all(self._blobs.size(name) is not None for name in (c.root, *own.leaves)):
            self.do(self.round.contributed(now, base, c.root, c.tokens, own.leaves, c.journal))
        else:  # a power cut took them
            self.do(self.round.contribution_lost(now, base, Head(c.root, c.tokens, c.journal)))

    # Carrying out.

    async def _carry_out(self) -> None:
        """Effects in order. What must be durable before the next effect is awaited."""
        while True:
            effects = await self._effects.get()
            for effect in effects:
                match effect:
                    case Save():
                        await self.disk(self._save, effect)
                    case Enter():
                        await self._append(LogEntry(effect.fork, *self._spent()))
                    case Prune():
                        await self.disk(self.journal.prune, effect.parents | effect.bases, effect.tip)
                    case _:
                        self._perform(effect)
            self._effects.task_done()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._owner.send(effect.to, effect.message)
            case SendBlob():
                self._owner.send_blob(effect.to, effect.blob)
            case Freeze():
                self._owner.freeze(effect.base)
            case Discard():
                self._blobs.discard_results(effect.parent)
            case KeepParts():
                self._blobs.retain(BlobKind.PART, effect.parents)
            case Note():
                self._note(effect.code, effect.message)
            case _:
                self._spawn(self._work(effect))

    async def _work(self, effect: Effect) -> None:
        """What takes long, and ends in an event."""
        match effect:
            case Reduce():
                await self._reduce(effect)
            case Step():
                await self._step(effect)
            case Commit():
                await self._commit(effect)
            case Adopt():
                await self._adopt(effect.target)

    def _save(self, effect: Save) -> None:
        self._blobs.sync(effect.results)
        self.journal.save_acceptor(effect.parent, effect.acceptor)

    async def _reduce(self, effect: Reduce) -> None:
        result, bad = await self.disk(
            self.workshop.reduce, effect.base, effect.part, effect.sources, pool=self._codec_thread
        )
        roots = tuple(source.root for source in effect.sources)
        peers = tuple(source.peer for source in bad)
        self.do(self.round.reduced(time.monotonic(), effect.base, effect.part, result, roots, peers))

    async def _step(self, effect: Step) -> None:
        base, part, result = effect.base, effect.part, effect.result
        try:
            chunks = await self.disk(self.workshop.step, base, part, result, pool=self._state_thread)
        except KeyError:
            self.do(self.round.lost(time.monotonic(), base, part, result))
            return
        self.do(self.round.stepped(time.monotonic(), base, part, result, chunks))

    async def _commit(self, effect: Commit) -> None:
        certificate = effect.certificate
        try:
            await self.disk(self.workshop.commit, certificate, pool=self._state_thread)
        except (MismatchError, MissingBytesError) as error:
            self.failure = error
            return
        await self.disk(self._blobs.sync, result_blobs(certificate))
        await self._append(LogEntry(certificate, *self._spent(), effect.dropped))
        self.state_digest = certificate.value.state
        if certificate.value.round % self._manifest.draft.exchange.checkpoint_every == 0:
            await self.disk(self._checkpoint, self.workshop.state, pool=self._state_thread)
        self.do(self.round.committed(time.monotonic(), certificate))
        self._announce()
        self._owner.state_changed()

    async def _adopt(self, target: Digest) -> None:
        """Leave this lineage for the one that leads to `target`."""
        links = self.round.chain.lineage(target)
        lineage = [link for link in links if isinstance(link, Certificate)]
        try:
            await self.disk(self.workshop.adopt, lineage, pool=self._state_thread)
        except MissingBytesError as error:
            self.do(self.round.unreachable(time.monotonic(), target, error.certificate))
            return
        except MismatchError as error:
            self.failure = error
            return
        held = [name for certificate in lineage for name in result_blobs(certificate)]
        await self.disk(self._blobs.sync, [name for name in held if self._blobs.size(name) is not None])
        await self.disk(self.journal.moving, {self.round.tip.id, target})
        known = {entry.link.id: entry for entry in self.history}
        self.history[:] = [known.get(link.id) or LogEntry(link, 0.0, 0, 0) for link in links]
        await self.disk(self._store.rewrite, list(self.history))
        await self.disk(self._checkpoint, self.workshop.state, pool=self._state_thread)
        await self.disk(self._store.keep_states, {link.id for link in lineage})
        self.state_digest = self.round.chain.tip_of(target).state
        self._note("lineage_changed", f"this peer follows another lineage from round {lineage[-1].value.round} on")
        self.do(self.round.adopted(time.monotonic(), target))
        self._announce()
        self._owner.state_changed()

    async def _append(self, entry: LogEntry) -> None:
        """Log a link behind its parent, in place of whatever followed that."""
        parent, kept = parent_of(entry.link), list(self.history)
        while kept and kept[-1].link.id != parent:
            kept.pop()
        if len(kept) < len(self.history):
            await self.disk(self._store.rewrite, [*kept, entry])
        else:
            await self.disk(self._store.append, entry)
        self.history[:] = [*kept, entry]

    def _spent(self) -> tuple[float, int, int]:
        """Seconds, bytes sent and bytes received since the last link."""
        now, (up, down) = time.monotonic(), self._owner.traffic()
        spent = now - self._began, up - self._marks[0], down - self._marks[1]
        self._began, self._marks = now, (up, down)
        return spent

    def _checkpoint(self, state: OuterState) -> None:
        retain = self._manifest.draft.exchange.retain_rounds
        self._store.save_state(state.parent, state.round, state.vectors, retain)

    async def _keep_time(self) -> None:
        """Tick the round when it is due; every event moves the deadline."""
        while True:
            self.changed.clear()
            now = time.monotonic()
            self.round.rate_bps = self._owner.upload_rate()
            with contextlib.suppress(TimeoutError):  # nothing happened before the deadline: that is the tick
                async with asyncio.timeout(max(0.0, self.round.deadline(now) - now)):
                    await self.changed.wait()
                    continue
            effects = self.round.tick(time.monotonic())
            if effects:
                self._effects.put_nowait(effects)

    async def disk(self, work: Callable[..., T], *args: Any, pool: ThreadPoolExecutor | None = None) -> T:
        """Run work that writes in a thread; a full disk pauses it, with that reason, until there is space."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = await loop.run_in_executor(pool, lambda: work(*args))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self.disk_problem = (
                    f"the disk under {self._store.folder} is full: free some space, it goes on by itself."
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


def result_blobs(certificate: Certificate) -> list[Digest]:
    """Digests of the results that a certificate names, where they have bytes."""
    return [part.digest for part in certificate.value.parts if certificate.value.contributions]
