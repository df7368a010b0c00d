"""The plain reference that real runs are held against: one process, no network, nothing of the trainer's loop."""

import numpy as np
import pytest


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
