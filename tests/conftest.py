"""What several folders of tests share: a plain reference that real runs are held against, and training logs by hand."""

import numpy as np
import pytest

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.p2p.round.synod import evidence
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.protocol.certificate import Certificate, Contribution, PartResult, Value, Vote, bitmap, round_tokens
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import ZERO_DIGEST, array_digest, content_digest, state_digest
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest
from atoll.protocol.standing import Record, Standing, sign_ticket


@pytest.fixture(scope="session")
def plain_reference():
    """`(draft, genesis, corpus, peers, folder) -> (numel,) float32`: outer parameters after the draft's rounds."""
    return reference


def reference(draft, genesis, corpus, peers, folder):
    """DiLoCo as in the paper: plain PyTorch modules, a NumPy outer step written out, no FSDP, no port, no network."""
    import torch
    from torch.nn import functional

    from atoll.trainer.data.files import Corpus
    from atoll.trainer.data.loader import IGNORED, Loader, Windows
    from atoll.trainer.data.tokenizer import ByteTokenizer
    from atoll.trainer.data.tokens import prepare_tokens
    from atoll.trainer.model import model_config, seeded_model
    from atoll.trainer.schedule import learning_rate

    torch.set_num_threads(1)
    tokens = prepare_tokens(folder, Corpus.choose([corpus], "local"), draft.data, ByteTokenizer())
    windows = Windows(tokens.training, draft.data.sequence_length)
    outer = np.fromfile(genesis, "<f4")
    momentum = np.zeros_like(outer)
    workers = []
    for peer in peers:
        model = seeded_model(model_config(draft.model, 257, 256), 0)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": draft.inner.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(draft.inner.beta1, draft.inner.beta2),
            eps=draft.inner.epsilon,
        )
        workers.append((model, optimizer, Loader(windows, draft.run.seed, peer)))
    for round_number in range(draft.run.rounds):
        gradients, weights = [], []
        for model, optimizer, loader in workers:
            put(model, outer)
            consumed = 0
            for step in range(draft.inner.steps):
                batch = loader.next(draft.inner.batch_sequences, 0, 1)
                logits = model(input_ids=torch.from_numpy(batch.inputs)).logits
                targets = torch.from_numpy(batch.targets).flatten()
                loss = functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), draft.inner.clip_norm)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(draft.inner, draft.run.rounds, round_number, step)
                optimizer.step()
                consumed += batch.tokens
            gradients.append(outer - flat(model))
            weights.append(consumed)
        average = sum(w * g for w, g in zip(weights, gradients, strict=True)) / sum(weights)
        momentum = draft.outer.momentum * momentum + average
        outer = (outer - draft.outer.learning_rate * (average + draft.outer.momentum * momentum)).astype(np.float32)
    return outer


def flat(model):
    return np.concatenate([p.detach().numpy().reshape(-1) for _, p in sorted(model.named_parameters())])


def put(model, vector):
    import torch

    start = 0
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.tensor(vector[start : start + parameter.numel()]).view_as(parameter))
            start += parameter.numel()


class Book:
    """A run's links, signed by hand: three voters, the first is the owner; others may contribute.

    Every average is zero, so that each state is genesis under other counters, and states and results are real.
    """

    NUMEL, PART = 3000, 1024

    def __init__(self, seed=1, voters=3, **exchange):
        self.keys = [Identity(bytes([seed, number]) + bytes(30)) for number in range(voters + 3)]
        names = [peer_name(key.peer_id) for key in self.keys]
        draft = Draft.from_tree({
            "run": {"name": "t", "owner": names[0], "rounds": 0, "electorate": names[:voters]},
            "exchange": {"gather_codec": "fp32", "part_elements": self.PART, "token_unit": 1, **exchange},
        })
        self.params = np.linspace(-1, 1, self.NUMEL, dtype=np.float32)
        self.chunks = [array_digest(self.params[bounds]) for bounds in Layout(self.NUMEL, self.PART)]
        genesis = GenesisSettings(self.NUMEL, state_digest(0, 0, self.chunks))
        self.manifest = Manifest.sign(draft, genesis, self.keys[0])
        self.chain = Chain(
            self.manifest.run_id, electorates.genesis(self.manifest.electorate), genesis.digest, self.manifest.layout,
            owner=self.manifest.owner, settings=draft.exchange,
        )
        layout = self.manifest.layout
        zeros = [codec("fp32").encode(np.zeros(layout.size(part), np.float32)) for part in range(layout.parts)]
        self.results = {content_digest(data): data for data in zeros}
        self.averages = [content_digest(data) for data in zeros]
        self.links = []

    def key(self, peer):
        return next(key for key in self.keys if key.peer_id == peer)

    def record(self, number, kind=Standing.JOIN, ticket=b""):
        return Record.sign(self.keys[number], self.chain.tip.base, kind, bytes([number + 1]) * 16, ticket)

    def ticket(self, number, owner=0):
        return sign_ticket(self.keys[owner], self.manifest.run_id, self.keys[number].peer_id)

    def value(self, contributors=(0, 1, 2), records=None):
        """What the next round decides by the rules; `records` are everybody's journals in the first round."""
        tip, layout = self.chain.tip, self.manifest.layout
        if records is None:
            records = () if tip.round else [self.record(number) for number in range(len(tip.voters))]
        listed = tuple(sorted(
            Contribution(self.keys[n].peer_id, content_digest(tip.base + bytes([n])), 10 + n, bytes([n + 1]) * 16)
            for n in contributors
        ))
        everybody = bitmap(set(range(len(listed))), len(listed))
        parts = tuple(
            PartResult(everybody if listed else b"", self.averages[part] if listed else ZERO_DIGEST)
            for part in range(layout.parts)
        )
        attendance = bitmap(set(range(len(tip.standings.decided_by))), len(tip.standings.decided_by))
        records = tuple(sorted(records, key=lambda record: record.peer))
        after = electorates.successor(tip.standings, self.chain.policy, listed, attendance, records)
        tokens = tip.tokens + round_tokens(listed, parts, self.chain.sizes)
        state = state_digest(tip.round + 1, tokens, self.chunks)
        return Value(tip.id, tip.round + 1, tokens, listed, parts, attendance, records, after.electorate, state)

    def sign(self, value, voters=None, ballot=0):
        chosen = [entry for at, entry in enumerate(self.chain.tip.electorate) if voters is None or at in voters]
        votes = [Vote.cast(self.key(entry.peer), entry.journal, ballot, value) for entry in sorted(chosen)]
        return Certificate(value, ballot, tuple(votes))

    def certify(self, contributors=(0, 1, 2), records=None):
        return self.enter(self.sign(self.value(contributors, records)))

    def promise(self, number, accepted=None, rank=Rank.VOTERS):
        tip, key = self.chain.tip, self.keys[number]
        journal = tip.journal_of(key.peer_id) or bytes([number + 1]) * 16
        said = None if accepted is None else (0, accepted.id)
        return LastPromise.sign(key, tip.id, b"n" * 16, rank, journal, said)

    def fork(self, signers=(0,), accepted=None, rank=Rank.VOTERS):
        promises = tuple(sorted((self.promise(n, accepted, rank) for n in signers), key=lambda promise: promise.peer))
        bound = accepted if evidence(promises, self.chain.tip.countable) else None
        return self.enter(Fork(self.chain.tip.id, b"n" * 16, rank, promises, bound))

    def enter(self, link):
        self.chain.append(link)
        self.links.append(link)
        return link

    def write(self, folder, links=None):
        """A run's folder with manifest, genesis, log, results and the last two states."""
        folder.mkdir(parents=True, exist_ok=True)
        store = RunStore(folder)
        store.manifest.write_bytes(self.manifest.signed_bytes())
        store.genesis.write_bytes(self.params.tobytes())
        store.rewrite([LogEntry(link, 1.0, 10, 20) for link in (self.links if links is None else links)])
        for link in self.links:
            if isinstance(link, Certificate):
                self._keep(store, link)
        return folder

    def _keep(self, store, certificate):
        store.save_state(certificate.id, certificate.value.round, [self.params], 64)
        folder = store.folder / "blobs" / f"result-{self.chain.tip_of(certificate.value.parent).base.hex()[:32]}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.results.items():
            (folder / name.hex()).write_bytes(data)


@pytest.fixture
def book():
    """`book(**exchange)`: a run to which a test adds links."""
    return Book


@pytest.fixture
def told(book):
    """A run's story in eight links: four rounds, a newcomer, a FORK of one voter, and the others let in again."""
    book = book(admit_after=2)
    book.certify()
    book.certify((0, 1, 2, 3))
    book.certify((0, 1, 2, 3), [book.record(3)])
    book.certify((0, 1))
    book.fork((0,), book.value((0, 3)))
    book.certify((0, 3))
    book.certify((0, 1), [book.record(1, ticket=book.ticket(1))])
    book.certify(())
    return book
