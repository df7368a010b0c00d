"""A run of one voter in a folder: real manifest, genesis, chain, log, states and signatures; no network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.p2p import boot
from atoll.p2p.blobs import BlobStore
from atoll.p2p.journal import Journal
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.effects import Source
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.protocol.certificate import Certificate, Contribution, PartResult, Value, Vote, bitmap, round_tokens
from atoll.protocol.digest import ZERO_DIGEST, array_digest, state_digest
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest
from atoll.protocol.messages import BlobKind
from atoll.protocol.standing import Record, Standing

ME = Identity(b"\1" * 32)
OTHER = Identity(b"\2" * 32)
NUMEL, PART = 5000, 1024
JOURNAL = bytes(range(16))


def _manifest(folder: Path, **exchange: Any) -> tuple[Manifest, Path]:
    momentum = exchange.pop("momentum", 0.9)
    draft = Draft.from_tree(
        {
            "run": {"name": "t", "owner": peer_name(ME.peer_id), "rounds": 0},
            "exchange": {"gather_codec": "fp32", "part_elements": PART, "token_unit": 1, **exchange},
            "outer": {"learning_rate": 0.7 if momentum else 1.0, "momentum": momentum},
        }
    )
    params = np.linspace(-1, 1, NUMEL, dtype=np.float32)
    vectors = (params, np.zeros_like(params)) if momentum else (params,)
    chunks = [array_digest(vector[bounds]) for vector in vectors for bounds in Layout(NUMEL, PART)]
    genesis = folder / "genesis.fp32"
    genesis.write_bytes(params.tobytes())
    return Manifest.sign(draft, GenesisSettings(NUMEL, state_digest(0, 0, chunks)), ME), genesis


class Run:
    """One peer's folder, and its rounds: this peer alone votes, another one contributes where a test wants it."""

    def __init__(self, folder: Path, manifest: Manifest, genesis: Path) -> None:
        self.folder, self.manifest = folder, manifest
        folder.mkdir(exist_ok=True)
        boot.keep_manifest(RunStore(folder), manifest, genesis)
        self.start()

    def start(self) -> boot.Resumed:
        """As after a kill: from what is on disk."""
        self.store, self.blobs = RunStore(self.folder), BlobStore(self.folder / "blobs")
        journal = Journal.open(self.store.journal)
        resumed = boot.resume(self.store, self.blobs, self.manifest, journal, ME.peer_id)
        journal.close()
        self.chain, self.workshop, self.history = resumed.chain, resumed.workshop, resumed.history
        return resumed

    def certify(self, *vectors: np.ndarray, parts: Any = None, salt: int = 0) -> Certificate:
        """The next certificate: this peer's vector, then another one's; in `parts` only. None at all: empty."""
        tip, shop, listed, leaves = self.chain.tip, self.workshop, [], []
        for identity, vector in zip((ME, OTHER), vectors, strict=False):
            root, digests = shop.encode(tip.base, vector, 30)
            listed.append(Contribution(identity.peer_id, root, 30 + salt))
            leaves.append(digests)
        order = sorted(range(len(listed)), key=lambda i: listed[i].peer)
        included = bitmap(set(range(len(listed))), len(listed))
        results, chunks = [], []
        for part in range(shop.layout.parts):
            there = order if parts is None or part in parts else []
            sources = tuple(Source(listed[i].peer, listed[i].root, 30, leaves[i][part]) for i in there)
            digest = shop.reduce(tip.base, part, sources)[0] if listed else ZERO_DIGEST
            assert digest is not None
            results.append(PartResult(included if there else bytes(len(included)), digest))
            chunks.append(shop.step(tip.base, part, digest))
        return self.sign(tuple(listed[i] for i in order), tuple(results), chunks)

    def sign(self, listed: Any, results: Any, chunks: Any) -> Certificate:
        tip = self.chain.tip
        attendance = bitmap(set(range(len(tip.standings.decided_by))), len(tip.standings.decided_by))
        records = () if tip.round else (Record.sign(ME, tip.base, Standing.JOIN, JOURNAL),)
        after = electorates.successor(tip.standings, self.chain.policy, listed, attendance, records)
        tokens = tip.tokens + round_tokens(listed, results, self.chain.sizes)
        ordered = [chunk[section] for section in range(len(chunks[0])) for chunk in chunks]
        state = state_digest(tip.round + 1, tokens, ordered)
        value = Value(tip.id, tip.round + 1, tokens, listed, results, attendance, records, after.electorate, state)
        return Certificate(value, 0, (Vote.cast(ME, tip.journal_of(ME.peer_id) or b"", 0, value),))

    def commit(self, certificate: Certificate, *, save: bool = False) -> Certificate:
        self.workshop.commit(certificate)
        self.log(certificate)
        if save:
            self.save()
        return certificate

    def save(self) -> None:
        state = self.workshop.state
        self.store.save_state(state.parent, state.round, state.vectors, 64)

    def log(self, link: Certificate | Fork) -> None:
        self.chain.append(link)
        self.history.append(LogEntry(link, 1.0, 0, 0))
        self.store.append(self.history[-1])

    def fork(self) -> Fork:
        """A FORK of the one voter, entered."""
        parent, nonce = self.chain.tip.id, bytes(16)
        journal = self.chain.tip.journal_of(ME.peer_id) or b""
        promise = LastPromise.sign(ME, parent, nonce, Rank.VOTERS, journal, None)
        fork = Fork(parent, nonce, Rank.VOTERS, (promise,), None)
        self.log(fork)
        return fork

    def copy_results(self, other: "Run") -> None:
        """Get all results that another peer has."""
        for entry in other.history:
            if entry.certificate is not None:
                for part in entry.certificate.value.parts:
                    if part.digest != ZERO_DIGEST:
                        base = other.chain.tip_of(entry.certificate.value.parent).base
                        self.blobs.put(BlobKind.RESULT, base, part.digest, other.blobs.read(part.digest))

    def lineage(self) -> list[Certificate]:
        return boot.certificates(self.history)

    @property
    def digest(self) -> bytes:
        return self.workshop.state.digest(self.workshop.layout)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """`run("name", **exchange)`: a peer's folder; the same settings make the same run."""
    return lambda name="p", **exchange: Run(tmp_path / name, *_manifest(tmp_path, **exchange))


@pytest.fixture
def gradient() -> Callable[[int], np.ndarray]:
    return lambda seed: (np.random.default_rng(seed).standard_normal(NUMEL) * 0.01).astype(np.float32)


@pytest.fixture
def with_value() -> Callable[..., Certificate]:
    """A certificate with fields of its value replaced; its votes are void."""
    return lambda certificate, **fields: Certificate(dataclasses.replace(certificate.value, **fields), 0, ())
