"""Whole peers in virtual time: real round, workshop, blobs, journal and store; network, clock and trainer are made up.

A `Swarm` can be cut apart, its peers killed, frozen, robbed of their disk, started late and told to leave. What must
hold at every moment is asserted as it happens (`Swarm.trace`); `check_agreement` and `check_exactness` look at
the rest.
"""

import heapq
import importlib.util
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.p2p import boot
from atoll.p2p.blobs import BlobStore
from atoll.p2p.journal import Journal, OwnContribution
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
from atoll.p2p.round.round import Round
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.protocol import canonical
from atoll.protocol.certificate import Certificate, Contribution
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import ZERO_DIGEST, array_digest, content_digest, state_digest
from atoll.protocol.errors import MissingBytesError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest
from atoll.protocol.messages import Blob, BlobKind, Get, Message, Voted, seal, unseal

NUMEL, PART = 5000, 1024
TOKENS_PER_STEP = 100


class Peer:
    """One peer: drives its `Round` as the service does."""

    def __init__(self, swarm: "Swarm", identity: Identity, folder: Path) -> None:
        self.swarm, self.identity, self.folder, self.id = swarm, identity, folder, identity.peer_id
        self.alive, self.notes, self.trains, self.cannot_vote, self.ticket = False, [], True, False, b""
        self.step_s, self.tokens_per_step, self.frozen_until = 1.0, TOKENS_PER_STEP, 0.0
        self.generation = self.timer = 0
        self.journal = None
        self.durable: set[bytes] = set()  # results that were synced to this peer's disk

    def lose_disk(self) -> None:
        """Everything but the identity is gone."""
        self.journal.close()
        self.journal = None
        self.durable.clear()
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def announce(self) -> None:
        """Say again what was contributed under the base where this peer stands."""
        base = self.round.tip.base
        own = self.journal.contributions.get(base)
        if own is not None:
            c = own.contribution
            self.do(self.round.contributed(self.swarm.now, base, c.root, c.tokens, own.leaves, c.journal))

    def boot(self) -> None:
        """Start, or start again, from what is on disk."""
        self.store, self.blobs = RunStore(self.folder), BlobStore(self.folder / "blobs")
        boot.keep_manifest(self.store, self.swarm.manifest, self.swarm.genesis)
        if self.journal is not None:
            self.journal.close()
        self.journal = Journal.open(self.store.journal)
        resumed = boot.resume(self.store, self.blobs, self.swarm.manifest, self.journal, self.id)
        self.workshop, self.history = resumed.workshop, resumed.history
        now, draft = self.swarm.now, self.swarm.manifest.draft
        self.round = Round(
            self.identity, resumed.chain, draft.exchange, journal=self.journal.id, memory=self.journal.acceptors,
            stored=self.blobs.results(), rounds=draft.run.rounds, trains=self.trains, now=now,
        )
        self.round.cannot_vote, self.round.ticket = self.cannot_vote, self.ticket
        self.alive, self.generation = True, self.generation + 1
        self.announce()
        for other in self.swarm.live():
            if self.swarm.connected(self, other):
                self.do(self.round.greet(now, other.id))
        self.begin_training()
        self.wake()

    # The trainer: ready `inner` virtual seconds after the state is in force.

    def begin_training(self) -> None:
        if self.trains:
            self.parent, self.began = self.round.tip.base, self.swarm.now
            self.later(self.step_s * 20, lambda parent=self.parent: self.contribute(parent, 20))

    def contribute(self, parent: bytes, steps: int) -> None:
        if parent != self.round.tip.base or self.id in self.round.decree.exchange.heads:
            return
        if steps < 1:
            self.do(self.round.nothing_to_contribute(self.swarm.now, parent))
            return
        vector, tokens = self.swarm.gradient(self, parent, steps), steps * self.tokens_per_step
        if parent in self.journal.contributions:
            return
        root, leaves = self.workshop.encode(parent, vector, self.round.shape.weight(tokens))
        own = Contribution(self.id, root, tokens, self.journal.id)
        self.journal.save_contribution(parent, OwnContribution(own, leaves))
        self.swarm.made[root] = [self.blobs.read(leaf) for leaf in leaves]
        self.do(self.round.contributed(self.swarm.now, parent, root, tokens, leaves))

    def freeze(self, parent: bytes) -> None:
        steps = min(20, int((self.swarm.now - self.began) / self.step_s))
        self.later(0.05, lambda: self.contribute(parent, steps))

    # Effects.

    def later(self, delay: float, action: Callable[[], Any]) -> None:
        generation = self.generation
        self.swarm.at(self.swarm.now + delay, lambda: self.act(generation, action))

    def act(self, generation: int, action: Callable[[], Any]) -> None:
        """Unless this peer has died since; a frozen one acts when it thaws."""
        if self.alive and generation == self.generation:
            if self.frozen_until > self.swarm.now:
                self.swarm.at(self.frozen_until, lambda: self.act(generation, action))
            else:
                action()

    def leave(self) -> None:
        """Say goodbye, and go as soon as the round lets it."""
        self.do(self.round.leave(self.swarm.now))
        self.wake()

    def wake(self) -> None:
        """Set the one timer anew; those set before are void."""
        now = self.swarm.now
        if self.round.leaving and self.round.departed(now):
            self.swarm.kill(self)
            return
        self.timer = timer = self.timer + 1
        self.later(max(1e-6, self.round.deadline(now) - now), lambda: self.tick() if timer == self.timer else None)

    def tick(self) -> None:
        if self.trains and not self.round.finished:
            steps = min(20, int((self.swarm.now - self.began) / self.step_s))
            self.round.inner_step, self.round.tokens = steps, steps * self.tokens_per_step
        self.do(self.round.tick(self.swarm.now))
        self.wake()

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.swarm.trace(self, effect)
            if not self.alive:
                return
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        now = self.swarm.now
        match effect:
            case Send():
                self.swarm.transmit(self, effect.to, effect.message)
            case SendBlob():
                self.swarm.transmit_blob(self, effect.to, effect.blob)
            case Save():
                self.blobs.sync(effect.results)
                self.durable.update(effect.results)
                self.journal.save_acceptor(effect.parent, effect.acceptor)
            case Freeze():
                self.freeze(effect.base)
            case Reduce():
                result, bad = self.workshop.reduce(effect.base, effect.part, effect.sources)
                roots = tuple(s.root for s in effect.sources)
                self.later(
                    0.01,
                    lambda: self.do(
                        self.round.reduced(
                            self.swarm.now, effect.base, effect.part, result, roots, tuple(s.peer for s in bad)
                        )
                    ),
                )
            case Step():
                try:
                    chunks = self.workshop.step(effect.base, effect.part, effect.result)
                except KeyError:
                    self.do(self.round.lost(now, effect.base, effect.part, effect.result))
                    return
                self.later(
                    0.01,
                    lambda: self.do(
                        self.round.stepped(self.swarm.now, effect.base, effect.part, effect.result, chunks)
                    ),
                )
            case Commit():
                self.workshop.commit(effect.certificate)
                self.log(LogEntry(effect.certificate, 1.0, 0, 0, effect.dropped))
                self.save_state()
                self.do(self.round.committed(now, effect.certificate))
                self.arrive()
            case Enter():
                self.log(LogEntry(effect.fork, 0.0, 0, 0))
            case Adopt():
                self.later(0.02, lambda: self.adopt(effect.target))
            case Prune():
                self.journal.prune(effect.parents | effect.bases, effect.tip)
            case Discard():
                self.blobs.discard_results(effect.parent)
            case KeepParts():
                self.blobs.retain(BlobKind.PART, effect.parents)
            case Note():
                self.notes.append(effect.code)

    def log(self, entry: LogEntry) -> None:
        while self.history and self.history[-1].link.id != parent_of(entry.link):
            self.history.pop()
        self.history.append(entry)
        self.store.rewrite(self.history)

    def save_state(self) -> None:
        state = self.workshop.state
        self.store.save_state(state.parent, state.round, state.vectors, 64)

    def arrive(self) -> None:
        if self.alive:
            self.announce()
            self.begin_training()

    def adopt(self, target: bytes) -> None:
        links = self.round.chain.lineage(target)
        try:
            self.workshop.adopt([link for link in links if isinstance(link, Certificate)])
        except MissingBytesError as error:
            self.do(self.round.unreachable(self.swarm.now, target, error.certificate))
            self.wake()
            return
        self.history[:] = [LogEntry(link, 0.0, 0, 0) for link in links]
        self.store.rewrite(self.history)
        self.save_state()
        self.do(self.round.adopted(self.swarm.now, target))
        self.arrive()
        self.wake()

    def arrived(self, sender: "Peer", data: bytes) -> None:
        message = self.swarm.unseal(sender, data)
        if isinstance(message, Get) and message.content is not BlobKind.LINK:
            size = self.blobs.size(message.digest)
            if size is None:
                self.swarm.transmit(self, sender.id, Blob(message.content, message.digest, None))
            else:
                self.swarm.transmit_blob(self, sender.id, Blob(message.content, message.digest, size, wanted=True))
        elif isinstance(message, Blob):
            self.do(self.round.missing(self.swarm.now, sender.id, message.digest))
        else:
            self.do(self.round.receive(self.swarm.now, sender.id, message))
        self.wake()

    def arrived_blob(self, sender: "Peer", blob: Blob, payload: bytes) -> None:
        if self.round.accepts(sender.id, blob):
            leaves = canonical.decode(payload, limit=len(payload)) if blob.content is BlobKind.LEAVES else None
            self.blobs.put(blob.content, self.round.base_of(blob), blob.digest, payload)
            self.do(self.round.stored(self.swarm.now, sender.id, blob, leaves))
            self.wake()

    @property
    def digest(self) -> str:
        return self.workshop.state.digest(self.workshop.layout).hex()


class Swarm:
    """`count` peers over a network with seeded latency; the first `voters` (default: all) are the first electorate.

    `start` of them run from the beginning (default: all), the others when `start` is called for them.
    """

    def __init__(
        self, folder: Path, count: int, seed: int = 1, *, voters: int | None = None, start: int | None = None,
        numel: int = NUMEL, rounds: int = 0, **exchange: Any,
    ) -> None:
        self.dice, self.now, self.queue, self.order, self.numel = random.Random(seed), 0.0, [], 0, numel
        self.loss, self.on_effect = 0.0, lambda peer, effect: None
        self.island: dict[bytes, int] = {}
        self.certified: dict[bytes, bytes] = {}  # by parent: the one value ever certified under it
        self.made: dict[bytes, list[bytes]] = {}  # by root: encoded parts
        self._sealed: tuple[Any, Any, bytes] = None, None, b""
        self._unsealed: dict[bytes, Message] = {}
        self.identities = [Identity(bytes([seed % 256, i + 1]) + bytes(30)) for i in range(count)]
        names = [peer_name(i.peer_id) for i in self.identities]
        settings = {
            "part_elements": PART,
            "token_unit": 1,
            "grace_s": 8.0,
            "ballot_timeout_s": 4.0,
            "heartbeat_s": 0.5,
            "gone_after_s": 2.0,
            "contribution_codec": "int8",
            "gather_codec": "int8",
            **exchange,
        }
        outer = {"learning_rate": 0.7, "momentum": 0.9}
        draft = Draft.from_tree(
            {
                "run": {"name": "t", "owner": names[0], "rounds": rounds, "electorate": names[:voters]},
                "exchange": settings,
                "outer": outer,
            }
        )
        params = np.linspace(-1, 1, numel, dtype=np.float32)
        bounds = [slice(i, min(i + PART, numel)) for i in range(0, numel, PART)]
        chunks = [array_digest(v[b]) for v in (params, np.zeros_like(params)) for b in bounds]
        self.genesis = folder / "genesis"
        self.genesis.write_bytes(params.tobytes())
        self.manifest = Manifest.sign(draft, GenesisSettings(numel, state_digest(0, 0, chunks)), self.identities[0])
        self.peers: dict[bytes, Peer] = {}
        for i, identity in enumerate(self.identities):
            (folder / f"p{i}").mkdir()
            self.peers[identity.peer_id] = Peer(self, identity, folder / f"p{i}")
        for peer in list(self.peers.values())[:start]:
            self.start(peer)

    def start(self, peer: Peer) -> None:
        """Start a peer, or start it again; it and those it can reach find one another."""
        peer.boot()
        for other in self.live():
            if other is not peer and self.connected(peer, other):
                other.do(other.round.greet(self.now, peer.id))
                other.wake()

    def __getitem__(self, index: int) -> Peer:
        return list(self.peers.values())[index]

    def gradient(self, peer: Peer, parent: bytes, steps: int) -> np.ndarray:
        seed = int.from_bytes(parent[:4] + peer.id[-4:], "little")
        return (np.random.default_rng(seed).standard_normal(self.numel) * 0.01 * steps).astype(np.float32)

    def at(self, when: float, action: Callable[[], Any]) -> None:
        self.order += 1
        heapq.heappush(self.queue, (when, self.order, action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        end = self.now + seconds
        while self.queue and self.queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self.queue)
            action()
            if until():
                return True
        self.now = end
        return until()

    def trace(self, peer: Peer, effect: Effect) -> None:
        """What must hold at every moment: votes only for what is durable; one certificate under each parent."""
        self.on_effect(peer, effect)
        if isinstance(effect, Send) and isinstance(effect.message, Voted) and effect.message.vote.peer == peer.id:
            vote = effect.message.vote
            acceptor = peer.journal.acceptors.get(vote.parent)
            if acceptor is not None or peer.round.chain.on_path(vote.parent):
                assert acceptor is not None, "a vote that is not in the journal"
                assert acceptor.accepted is not None, "a vote that is not in the journal"
                ballot, value = acceptor.accepted
                assert ballot > vote.ballot or (ballot, value.id) == (vote.ballot, vote.certificate)
                digests = {part.digest for part in value.parts if part.digest != ZERO_DIGEST}
                assert digests <= peer.durable, "a vote for results that are not durable"
        if isinstance(effect, Commit):
            value = effect.certificate.value
            assert self.certified.setdefault(value.parent, value.id) == value.id, "two values under one parent"

    # The network.

    def connected(self, one: Peer, other: Peer) -> bool:
        return self.island.get(one.id, 0) == self.island.get(other.id, 0)

    def cut(self, *islands: list[Peer]) -> None:
        """Only peers of one island reach each other; those not named are on an island of their own together."""
        self.island = {peer.id: number for number, island in enumerate(islands, 1) for peer in island}
        for peer in self.live():
            for other in self.peers.values():
                if not self.connected(peer, other):
                    peer.do(peer.round.disconnected(self.now, other.id))

    def heal(self) -> None:
        """All reach each other again, and find each other."""
        self.island = {}
        for peer in self.live():
            for other in self.live():
                peer.do(peer.round.greet(self.now, other.id))
            peer.wake()

    def transmit(self, sender: Peer, to: bytes, message: Any) -> None:
        receiver = self.peers.get(to)
        if receiver is None or self.dice.random() < self.loss:
            return
        if self._sealed[0] is not sender or self._sealed[1] is not message:  # one signature for all who get it
            self._sealed = sender, message, seal(message, self.manifest.run_id, sender.identity)
        data = self._sealed[2]
        self.deliver(sender, receiver, lambda: receiver.arrived(sender, data))

    def unseal(self, sender: Peer, data: bytes) -> Message:
        if data not in self._unsealed:
            if len(self._unsealed) > 1024:
                self._unsealed.clear()
            self._unsealed[data] = unseal(data, self.manifest.run_id, sender.id)
        return self._unsealed[data]

    def transmit_blob(self, sender: Peer, to: bytes, blob: Blob) -> None:
        receiver = self.peers.get(to)
        if receiver is not None and sender.blobs.size(blob.digest) is not None:
            payload = sender.blobs.read(blob.digest)
            self.deliver(sender, receiver, lambda: receiver.arrived_blob(sender, blob, payload))

    def deliver(self, sender: Peer, receiver: Peer, action: Callable[[], Any]) -> None:
        generation, delay = receiver.generation, self.dice.uniform(0.01, 0.1)

        def arrive() -> None:
            if self.connected(sender, receiver):
                receiver.act(generation, action)

        if self.connected(sender, receiver):
            self.at(self.now + delay, arrive)

    # Faults.

    def kill(self, peer: Peer, *, told: bool = True) -> None:
        peer.alive = False
        for other in self.peers.values():
            if told and other.alive and self.connected(peer, other):
                other.do(other.round.disconnected(self.now, peer.id))

    def freeze(self, peer: Peer, seconds: float) -> None:
        """It computes nothing for so long; what was sent to it is there when it thaws."""
        peer.frozen_until = self.now + seconds

    def live(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.alive]

    # What is looked at.

    def reach(self, number: int, seconds: float = 400.0, peers: list[Peer] | None = None) -> None:
        """Run until these (default: all live) peers have certified `number` rounds."""
        chosen = peers or self.live()
        assert self.run(seconds, lambda: all(p.round.tip.round >= number for p in chosen)), self.story(chosen)
        self.check_agreement()

    def unite(self, seconds: float = 600.0, peers: list[Peer] | None = None) -> None:
        """Run until these (default: all live) peers stand at one certificate."""
        chosen = peers or self.live()

        def together() -> bool:
            return len({p.round.tip.id for p in chosen}) == 1 and not chosen[0].round.tip.is_fork

        assert self.run(seconds, together), self.story(chosen)
        self.check_agreement()

    def story(self, peers: list[Peer]) -> list[Any]:
        return [(p.round.tip.round, p.round.tip.forks, str(p.round.phase), p.notes[-4:]) for p in peers]

    def check_agreement(self) -> None:
        """Same tip, same bytes; one certificate per parent; the logs replay from genesis."""
        by_tip: dict[bytes, set[str]] = {}
        children: dict[bytes, set[bytes]] = {}
        for peer in self.peers.values():
            if peer.alive:
                by_tip.setdefault(peer.round.tip.id, set()).add(peer.digest)
                assert peer.digest == peer.round.tip.state.hex()
                roots = [c.root for e in peer.history if e.certificate for c in e.certificate.value.contributions]
                assert len(roots) == len(set(roots)), "a contribution counted twice along a lineage"
            for entry in peer.history if peer.journal is not None else ():
                if entry.certificate is not None:
                    children.setdefault(entry.certificate.value.parent, set()).add(entry.certificate.id)
        assert all(len(digests) == 1 for digests in by_tip.values())
        assert all(len(ids) == 1 for ids in children.values())

    def check_exactness(self) -> None:
        """Every certified result is, part by part, the weighted mean of exactly what its certificate lists for it."""
        settings = self.manifest.draft.exchange
        contribution, gather = codec(settings.contribution_codec), codec(settings.gather_codec)
        layout, seen = self.manifest.layout, set()
        for entry in [entry for peer in self.live() for entry in peer.history]:
            if entry.certificate is None or entry.link.id in seen:
                continue
            seen.add(entry.link.id)
            value = entry.certificate.value
            for part, result in enumerate(value.parts if value.contributions else ()):
                size, weight = layout.size(part), 0
                total = np.zeros(size, np.float32)
                for c in [c for i, c in enumerate(value.contributions) if result.includes(i)]:
                    total = total + np.float32(c.tokens) * contribution.decode(self.made[c.root][part], size)
                    weight += c.tokens
                average = total / np.float32(weight or 1)
                assert content_digest(gather.encode(average)) == result.digest, "a result that is not the mean"


@pytest.fixture
def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Swarm]:
    """`swarm(count, seed, **settings)`: a group of peers; several in one test lie in folders of their own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here: it would only take time
    monkeypatch.setattr(os, "urandom", random.Random(1).randbytes)  # journals' ids, hence the whole run, are the seed's
    made: list[Swarm] = []

    def make(*args: Any, **kwargs: Any) -> Swarm:
        folder = tmp_path / f"swarm{len(made)}"
        folder.mkdir()
        made.append(Swarm(folder, *args, **kwargs))
        return made[-1]

    return make


@pytest.fixture
def body() -> Callable[[str, str], Callable[..., None]]:
    """`body("test_forks", "test_…")`: the test of another file here, to be run under a planted fault."""

    def find(module: str, name: str) -> Callable[..., None]:
        path = Path(__file__).with_name(f"{module}.py")
        spec = importlib.util.spec_from_file_location(f"planted_{module}", path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, name)

    return find
