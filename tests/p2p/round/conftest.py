"""Whole peers in virtual time: real round, workshop, blobs and disk store; network, clock and trainer are made up."""

import heapq
import random
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
from atoll.protocol.digest import array_digest, state_digest
from atoll.protocol.errors import MissingBytesError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest
from atoll.protocol.messages import Blob, BlobKind, Get, seal, unseal

NUMEL, PART = 5000, 1024


class Peer:
    """One peer: drives its `Round` as the service does."""

    def __init__(self, swarm: "Swarm", identity: Identity, folder: Path) -> None:
        self.swarm, self.identity, self.folder, self.id = swarm, identity, folder, identity.peer_id
        self.alive, self.frozen, self.notes, self.step_s, self.trains = True, False, [], 1.0, True
        self.generation = self.timer = 0
        self.journal = None
        self.boot()

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
            stored=self.blobs.digests(), rounds=draft.run.rounds, trains=self.trains, now=now,
        )
        self.alive, self.generation = True, self.generation + 1
        self.announce()
        for other in self.swarm.peers:
            self.do(self.round.greet(now, other))
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
        vector = self.swarm.gradient(self, parent, steps)
        root, leaves = self.workshop.encode(parent, vector)
        own = Contribution(self.id, root, steps * 100, self.journal.id)
        self.journal.save_contribution(parent, OwnContribution(own, leaves))
        self.do(self.round.contributed(self.swarm.now, parent, root, steps * 100, leaves))

    def freeze(self, parent: bytes) -> None:
        steps = min(20, int((self.swarm.now - self.began) / self.step_s))
        self.later(0.05, lambda: self.contribute(parent, steps))

    # Effects.

    def later(self, delay: float, action: Callable[[], Any]) -> None:
        generation = self.generation
        self.swarm.at(
            self.swarm.now + delay, lambda: action() if self.alive and generation == self.generation else None
        )

    def wake(self) -> None:
        """Set the one timer anew; those set before are void."""
        now = self.swarm.now
        self.timer = timer = self.timer + 1
        self.later(max(1e-6, self.round.deadline(now) - now), lambda: self.tick() if timer == self.timer else None)

    def tick(self) -> None:
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
                chunks = self.workshop.step(effect.base, effect.part, effect.result)
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
                self.adopt(effect.target)
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
            return
        self.history[:] = [LogEntry(link, 0.0, 0, 0) for link in links]
        self.store.rewrite(self.history)
        self.save_state()
        self.do(self.round.adopted(self.swarm.now, target))
        self.arrive()

    def arrived(self, sender: "Peer", data: bytes) -> None:
        message = unseal(data, self.swarm.manifest.run_id, sender.id)
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
    """`count` peers, all voters, over a network with seeded latency."""

    def __init__(self, folder: Path, count: int, seed: int = 1, *, voters: int | None = None, **exchange: Any) -> None:
        self.dice, self.now, self.queue, self.order = random.Random(seed), 0.0, [], 0
        self.loss, self.on_effect = 0.0, lambda peer, effect: None
        identities = [Identity(bytes([seed % 256, i + 1]) + bytes(30)) for i in range(count)]
        names = [peer_name(i.peer_id) for i in identities]
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
                "run": {"name": "t", "owner": names[0], "rounds": 0, "electorate": names[:voters]},
                "exchange": settings,
                "outer": outer,
            }
        )
        params = np.linspace(-1, 1, NUMEL, dtype=np.float32)
        bounds = [slice(i, min(i + PART, NUMEL)) for i in range(0, NUMEL, PART)]
        chunks = [array_digest(v[b]) for v in (params, np.zeros_like(params)) for b in bounds]
        self.genesis = folder / "genesis"
        self.genesis.write_bytes(params.tobytes())
        self.manifest = Manifest.sign(draft, GenesisSettings(NUMEL, state_digest(0, 0, chunks)), identities[0])
        self.peers: dict[bytes, Peer] = {}
        for i, identity in enumerate(identities):
            (folder / f"p{i}").mkdir()
            self.peers[identity.peer_id] = Peer(self, identity, folder / f"p{i}")
        for peer in self.peers.values():
            for other in self.peers:
                peer.do(peer.round.greet(0.0, other))

    def __getitem__(self, index: int) -> Peer:
        return list(self.peers.values())[index]

    def gradient(self, peer: Peer, parent: bytes, steps: int) -> np.ndarray:
        seed = int.from_bytes(parent[:4] + peer.id[-4:], "little")
        return (np.random.default_rng(seed).standard_normal(NUMEL) * 0.01 * steps).astype(np.float32)

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
        self.on_effect(peer, effect)

    def transmit(self, sender: Peer, to: bytes, message: Any) -> None:
        receiver = self.peers.get(to)
        if receiver is None or self.dice.random() < self.loss:
            return
        data = seal(message, self.manifest.run_id, sender.identity)
        self.deliver(sender, receiver, lambda: receiver.arrived(sender, data))

    def transmit_blob(self, sender: Peer, to: bytes, blob: Blob) -> None:
        receiver = self.peers.get(to)
        if receiver is not None and sender.blobs.size(blob.digest) is not None:
            payload = sender.blobs.read(blob.digest)
            self.deliver(sender, receiver, lambda: receiver.arrived_blob(sender, blob, payload))

    def deliver(self, sender: Peer, receiver: Peer, action: Callable[[], Any]) -> None:
        generation = receiver.generation
        delay = self.dice.uniform(0.01, 0.1)
        self.at(self.now + delay, lambda: action() if receiver.alive and receiver.generation == generation else None)

    def kill(self, peer: Peer, *, told: bool = True) -> None:
        peer.alive = False
        for other in self.peers.values():
            if told and other.alive:
                other.do(other.round.disconnected(self.now, peer.id))

    def live(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.alive]

    def check_agreement(self) -> None:
        """Same tip, same bytes; one certificate per parent; the logs replay from genesis."""
        by_tip: dict[bytes, set[str]] = {}
        children: dict[bytes, set[bytes]] = {}
        for peer in self.peers.values():
            if peer.alive:
                by_tip.setdefault(peer.round.chain.tip.id, set()).add(peer.digest)
                assert peer.digest == peer.round.chain.tip.state.hex()
            for entry in peer.history:
                if entry.certificate is not None:
                    children.setdefault(entry.certificate.value.parent, set()).add(entry.certificate.id)
        assert all(len(digests) == 1 for digests in by_tip.values())
        assert all(len(ids) == 1 for ids in children.values())


@pytest.fixture
def swarm(tmp_path: Path) -> Callable[..., Swarm]:
    return lambda *args, **kwargs: Swarm(tmp_path, *args, **kwargs)
