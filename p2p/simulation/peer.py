"""One simulated peer: drives the real `Round` and `Workshop` as the service does, in virtual time, on a disk in memory.

What the service does with threads and files happens here at once or a moment later, in the same order. Decides nothing
of the protocol. `world` makes peers, `network` brings them messages, `faults` kill and start them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.p2p.residuals import Residuals
from atoll.p2p.round import effects
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.p2p.round.effects import Effect
from atoll.p2p.round.exchange import Head
from atoll.p2p.round.round import Round
from atoll.p2p.simulation.disk import Link
from atoll.p2p.simulation.network import Meter
from atoll.p2p.simulation.plan import INNER_STEPS, TOKENS_PER_STEP, PeerPlan
from atoll.p2p.workshop import OuterState, Workshop
from atoll.protocol import canonical
from atoll.protocol.certificate import Certificate, Contribution
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MissingBytesError
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Blob, BlobKind, Get, Message, Ready

if TYPE_CHECKING:
    from atoll.p2p.simulation.world import World

ARITHMETIC_S = 0.01
COMMIT_S = 0.02


class Peer:
    def __init__(self, world: "World", index: int, plan: PeerPlan) -> None:
        self.world, self.index, self.plan, self.name = world, index, plan, f"p{index}"
        self.identity, self.id = plan.identity, plan.identity.peer_id
        self.disk = world.new_disk()
        self.meter = Meter()
        self.step_s, self.upload_bps = plan.step_s, plan.upload_bps
        self.alive, self.started, self.life = False, False, 0
        self.died_at = self.uploads_until = 0.0
        self.leaving_since: float | None = None
        self.left = self.gone = False
        self.cannot_vote, self.wishes_since = False, 0.0  # what it wants of the electorate, and since when
        self.hostile = False  # it has voted twice in a ballot: whoever knows has banned it
        self.die_in_save: Callable[[Peer], None] | None = None  # a torn journal, armed
        self.after_save: Callable[[Peer, effects.Save], bool] | None = None  # until it says that it has done its deed
        self.round: Round
        self.workshop: Workshop
        self._due_at = 0.0
        self._checking = False
        self._looked_at = 0.0
        self._base: Digest | None = None
        self._trains_since = 0.0

    # Life.

    @property
    def now(self) -> float:
        """What its own monotonic clock says."""
        return self.plan.clock_offset + self.plan.clock_rate * self.world.clock.now

    def start(self) -> None:
        """Start, or start again, from what is on the disk."""
        scenario, disk = self.world.scenario, self.disk
        manifest = scenario.manifest
        self.alive = self.started = True
        self.life += 1
        disk.generation += 1
        self.left, self.leaving_since, self._base, self._checking = False, None, None, False
        self.wishes_since = self.world.clock.now
        chain = Chain(
            manifest.run_id, electorates.genesis(manifest.electorate), manifest.genesis.digest, manifest.layout,
            owner=manifest.owner, settings=scenario.settings,
        )
        if not disk.read_back():
            self.world.watch.accuse("journal", "its bytes do not say what was written", self)
        self.workshop = self.new_workshop(disk.residuals)
        self._replay(chain)
        if disk.floor and not any(parent in chain for parent in disk.floor):
            disk.lose_journal(self.world.new_journal())  # it has forgotten votes under parents that come again
        self.round = Round(
            self.identity, chain, scenario.settings, journal=disk.journal, memory=dict(disk.promises),
            stored=disk.blobs.results(), rounds=manifest.draft.run.rounds, trains=self.plan.trains, now=self.now,
        )
        self.round.cannot_vote, self.round.ticket = self.cannot_vote, self.plan.ticket
        self.world.watch.started(self)
        self._restore_contribution()
        for other in self.world.reachable(self):
            self._do(self.round.greet(self.now, other))
        self._train()
        self._check_soon()

    def _replay(self, chain: Chain) -> None:
        """The log up to where its bytes are all held; the newest saved state saves steps."""
        disk = self.disk
        saved = max((i for i, link in enumerate(disk.log, 1) if link.id in disk.states), default=0)
        for number, link in enumerate(list(disk.log), 1):
            if number == saved:
                self.workshop.state = copy_state(disk.states[link.id])
                self.workshop.settle_at(certificates(disk.log[:number]))
            elif number > saved and isinstance(link, Certificate):
                try:
                    self.workshop.commit(link)
                except MissingBytesError:
                    del disk.log[number - 1 :]
                    break
            chain.append(link)
        self.workshop.settle_at(certificates(disk.log))

    def new_workshop(self, residuals: Residuals | None = None) -> Workshop:
        """One with the state of genesis; its ledger is empty, unless it is given the residuals of the disk."""
        return Workshop(
            self.world.scenario.manifest, self.disk.blobs, self.world.genesis_state(), own=self.id, residuals=residuals)

    def _restore_contribution(self) -> None:
        base = self.round.chain.tip.base
        own = self.disk.contributions.get(base)
        if own is None:
            return
        if all(self.disk.blobs.size(name) is not None for name in (own[0].root, *own[1])):
            self._do(self.round.contributed(self.now, base, own[0].root, own[0].tokens, own[1], own[0].journal))
        else:  # a power cut took the bytes; the root stands
            self._do(self.round.contribution_lost(self.now, base, Head(own[0].root, own[0].tokens, own[0].journal)))

    def kill(self, *, told: bool) -> None:
        """As kill -9 does. `told`: its links close, so that the others get a hint."""
        self.alive, self.died_at = False, self.world.clock.now
        self.world.watch.note(self, "dies")
        if told:
            for other in self.world.peers:
                if other.alive and self.world.network.connected(self.id, other.id):
                    self.world.clock.after(0.05, other.link_broke, other.life, self.id)

    def leave(self) -> None:
        self.leaving_since = self.wishes_since = self.world.clock.now
        self.world.watch.note(self, "wants to leave")
        self._event(self.round.leave(self.now))

    def may_vote(self, able: bool) -> None:
        """It cannot hold what a vote vouches for, or can again."""
        self.cannot_vote, self.wishes_since = not able, self.world.clock.now
        self.world.watch.note(self, "can vote again" if able else "cannot vote")
        if self.alive:
            self.round.cannot_vote = not able
            self._event(self.round.tick(self.now))

    # What the network brings.

    def arrived(self, sender: PeerId, message: Message) -> None:
        self.world.membership.hears(self, sender, message)
        if isinstance(message, Ready):
            self.world.punctuality.hears(self, sender, message)
        if isinstance(message, Get) and message.content is not BlobKind.LINK:
            self._answer(sender, message)
        elif isinstance(message, Blob):
            self._event(self.round.missing(self.now, sender, message.digest))
        else:
            self._event(self.round.receive(self.now, sender, message))

    def blob_arrived(self, sender: PeerId, blob: Blob, payload: bytes) -> None:
        if not self.round.accepts(sender, blob):
            return
        self.round.receiving(self.now, sender, blob.digest)
        leaves = canonical.decode(payload, limit=len(payload)) if blob.content is BlobKind.LEAVES else None
        self.disk.blobs.put(blob.content, self.round.base_of(blob), blob.digest, payload)
        self._event(self.round.stored(self.now, sender, blob, leaves))

    def link_broke(self, life: int, other: PeerId) -> None:
        if self.alive and life == self.life:
            self._event(self.round.disconnected(self.now, other))

    def found(self, other: PeerId) -> None:
        """Discovery has found a peer."""
        if self.alive:
            self._event(self.round.greet(self.now, other))

    def _answer(self, sender: PeerId, get: Get) -> None:
        size = self.disk.blobs.size(get.digest)
        if size is None:
            self.world.network.send(self, sender, Blob(get.content, get.digest, None))
        else:
            header = Blob(get.content, get.digest, size, wanted=True)
            self.world.network.send_blob(self, sender, header, self.disk.blobs.read(get.digest))

    # Time. Deadlines are read a moment after events, once for all of them: they cost more than most events.

    def _event(self, wanted: list[Effect]) -> None:
        self._do(wanted)
        self._check_soon()

    def _check_soon(self) -> None:
        if not self._checking and self.alive:
            self._checking, self._looked_at = True, self.now
            self.world.clock.after(self.world.check_every_s, self._check, self.life)

    def _check(self, life: int) -> None:
        if life != self.life or not self.alive:
            return
        self._checking = False
        deadline = self.round.deadline(self._looked_at)  # one that has passed since is not to be forgotten
        due = self.world.clock.now + max(1e-3, (deadline - self.now) / self.plan.clock_rate)
        if due < self._due_at or self._due_at <= self.world.clock.now:
            self._due_at = due
            self.world.clock.at(due, self._tick, self.life, due)

    def _tick(self, life: int, due: float) -> None:
        if self.alive and life == self.life and due == self._due_at:
            if self._base == self.round.chain.tip.base:
                self.round.inner_step = min(INNER_STEPS, self._steps_taken())
                self.round.tokens = self.round.inner_step * TOKENS_PER_STEP
            self._event(self.round.tick(self.now))

    def _later(self, delay: float, action: Callable[..., object], *args: Any) -> None:
        self.world.clock.after(delay, self._if_alive, self.life, action, args)

    def _if_alive(self, life: int, action: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.alive and life == self.life:
            action(*args)

    # The trainer.

    def _train(self) -> None:
        """Train on the state in force; a FORK changes the tip and not the state, so training goes on."""
        base = self.round.chain.tip.base
        if self.plan.trains and base != self._base and not self.round.finished:
            self._base, self._trains_since = base, self.world.clock.now
            self._later(self.step_s * INNER_STEPS, self._contribute, base, INNER_STEPS)

    def _freeze(self, base: Digest) -> None:
        if base == self._base:
            taken = (self.world.clock.now - self._trains_since) / self.step_s
            steps = min(INNER_STEPS, self._steps_taken() + 1)  # it stops at the next step boundary
            self._later((steps - taken) * self.step_s if steps > taken else 0.0, self._contribute, base, steps)

    def _steps_taken(self) -> int:
        return int((self.world.clock.now - self._trains_since) / self.step_s)

    def _contribute(self, base: Digest, steps: int) -> None:
        if base != self.round.chain.tip.base or base in self.disk.contributions:
            return
        vector = self.world.gradient(self, base, steps)
        tokens = steps * TOKENS_PER_STEP
        root, leaves = self.workshop.encode(base, vector, self.round.shape.weight(tokens))
        own = Contribution(self.id, root, tokens, self.disk.journal)
        self.disk.contribute(base, own, leaves)
        self.world.watch.contributed(self, base, own, leaves, vector)
        self._event(self.round.contributed(self.now, base, root, tokens, leaves))

    # Effects.

    def _do(self, wanted: list[Effect]) -> None:
        watch = self.world.watch
        for effect in wanted:
            if not self.alive:
                return
            watch.effect(self, effect)
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:  # noqa: C901, PLR0912  one short case for each effect
        match effect:
            case effects.Send():
                self.world.network.send(self, effect.to, effect.message)
            case effects.SendBlob():
                if self.disk.blobs.size(effect.blob.digest) is not None:
                    payload = self.disk.blobs.read(effect.blob.digest)
                    self.world.network.send_blob(self, effect.to, effect.blob, payload)
            case effects.Save():
                self._save(effect)
            case effects.Freeze():
                self._freeze(effect.base)
            case effects.Reduce():
                self._later(ARITHMETIC_S, self._reduce, effect)
            case effects.Step():
                self._later(ARITHMETIC_S, self._step, effect)
            case effects.Commit():
                self._later(COMMIT_S, self._commit, effect.certificate)
            case effects.Enter():
                self._enter(effect.fork)
            case effects.Adopt():
                self._later(COMMIT_S, self._adopt, effect.target)
            case effects.Discard():
                self.disk.blobs.discard_results(effect.parent)
            case effects.KeepParts():
                self.disk.blobs.retain(BlobKind.PART, effect.parents)
            case effects.Prune():
                self.disk.prune(effect.parents | effect.bases, effect.tip)
            case effects.Note():
                pass  # the watch keeps it

    def _save(self, effect: effects.Save) -> None:
        self.disk.blobs.sync(effect.results)
        if self.die_in_save is not None:
            die, self.die_in_save = self.die_in_save, None
            if self.disk.save_torn(effect.parent, effect.acceptor, self.world.network.dice):
                self.world.watch.saved(self, effect)  # whole on the disk, and yet nobody hears of it
            die(self)
            return
        self.world.watch.saved(self, effect)
        self.disk.save(effect.parent, effect.acceptor)
        if self.after_save is not None and self.after_save(self, effect):
            self.after_save = None

    def _reduce(self, effect: effects.Reduce) -> None:
        result, bad = self.workshop.reduce(effect.base, effect.part, effect.sources)
        roots = tuple(source.root for source in effect.sources)
        peers = tuple(source.peer for source in bad)
        self._event(self.round.reduced(self.now, effect.base, effect.part, result, roots, peers))

    def _step(self, effect: effects.Step) -> None:
        try:
            chunks = self.workshop.step(effect.base, effect.part, effect.result)
        except KeyError:
            self._event(self.round.lost(self.now, effect.base, effect.part, effect.result))
            return
        self._event(self.round.stepped(self.now, effect.base, effect.part, effect.result, chunks))

    def _commit(self, certificate: Certificate) -> None:
        self.world.watch.commits(self, certificate)
        self.workshop.commit(certificate)
        self._sync_results([certificate])
        self._log_behind(certificate)
        self.disk.save_state(self.workshop.state)
        self._moved(self.round.committed(self.now, certificate))

    def _sync_results(self, lineage: list[Certificate]) -> None:
        """What the log leads to must be there after a power cut."""
        results = (part.digest for certificate in lineage for part in certificate.value.parts)
        self.disk.blobs.sync(digest for digest in results if self.disk.blobs.size(digest) is not None)

    def _enter(self, fork: "Link") -> None:
        self._log_behind(fork)

    def _log_behind(self, link: Link) -> None:
        """Append a link behind its parent, in place of whatever followed it."""
        parent = link.value.parent if isinstance(link, Certificate) else link.parent
        log = self.disk.log
        at = next((i + 1 for i in reversed(range(len(log))) if log[i].id == parent), 0)
        log[at:] = [link]

    def _adopt(self, target: Digest) -> None:
        """Rebuild the state at another lineage's certificate, from the newest state saved on the way, or genesis."""
        lineage = self.round.chain.lineage(target)
        workshop = self.new_workshop()
        saved = max((i for i, link in enumerate(lineage, 1) if link.id in self.disk.states), default=0)
        if saved:
            workshop.state = copy_state(self.disk.states[lineage[saved - 1].id])
        try:
            for link in lineage[saved:]:
                if isinstance(link, Certificate):
                    workshop.commit(link)
        except MissingBytesError as error:
            self._moved(self.round.unreachable(self.now, target, error.certificate))
            return
        self.workshop.state.become(workshop.state)
        self.workshop.settle_at(certificates(lineage))
        self._sync_results(certificates(lineage))
        self.disk.log[:] = lineage
        self.disk.save_state(self.workshop.state)
        self.world.watch.adopted(self, lineage)
        self._moved(self.round.adopted(self.now, target))

    def _moved(self, wanted: list[Effect]) -> None:
        self._event(wanted)
        if self.alive:
            self._train()


def certificates(links: list[Link]) -> list[Certificate]:
    return [link for link in links if isinstance(link, Certificate)]


def copy_state(state: OuterState) -> OuterState:
    momentum = None if state.momentum is None else state.momentum.copy()
    return OuterState(state.parent, state.round, state.tokens, np.array(state.params), momentum)
