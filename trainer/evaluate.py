"""Held-out loss of the weights that the model has now: the same number on every rank, whatever the batches' sizes."""

import math

import torch
from torch import nn

from atoll.trainer.data.loader import Windows
from atoll.trainer.data.order import Indices
from atoll.trainer.inner import summed_loss
from atoll.trainer.model import reshard
from atoll.trainer.ranks import Ranks


@torch.no_grad()
def held_out_loss(
    model: nn.Module, windows: Windows, chosen: Indices, batch_sequences: int, ranks: Ranks,
) -> tuple[float, int]:
    """(nats per token weighted by real tokens, real tokens) over the chosen sequences, a collective.

    Every rank runs the same number of equal batches, some of them filled up with rows that count for nothing.
    """
    losses = 0.0
    for start in range(0, chosen.size, batch_sequences):
        batch = windows.rows(chosen[start:start + batch_sequences], ranks.rank, ranks.size)
        inputs, targets = (torch.from_numpy(rows).to(ranks.compute.device) for rows in (batch.inputs, batch.targets))
        losses += summed_loss(model, inputs, targets).item()
    reshard(model)
    total, = ranks.sum([losses])
    tokens = windows.real(chosen)
    return (total / tokens if math.isfinite(total) else math.nan), tokens
