"""One inner step: forward, backward, clipping and AdamW on the sharded model, or a step skipped on all ranks alike.

Knows no rounds and no network. Gradients are normalised by the real tokens of the whole batch, so that neither padding
nor the number of ranks changes a step. Moments live in float32 beside the shards and are kept across rounds, as in
DiLoCo (Douillard et al., arXiv 2311.08105).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from atoll.protocol.manifest import InnerSettings
from atoll.trainer.data.loader import IGNORED, Batch
from atoll.trainer.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StepResult:
    loss: float     # nats per token, over all ranks; NaN where the step was skipped
    tokens: int     # real tokens learned from; 0 where the step was skipped
    applied: bool


class InnerOptimizer:
    """AdamW on the model's shards, and the steps that drive it."""

    def __init__(self, model: nn.Module, settings: InnerSettings, ranks: Ranks, micro_batch_sequences: int = 0) -> None:
        """`micro_batch_sequences`: at most so many rows of this rank at once, gradients accumulated; 0: all of them."""
        self.model, self._clip, self._ranks, self._micro = model, settings.clip_norm, ranks, micro_batch_sequences
        self._parameters = [parameter for _, parameter in sorted(model.named_parameters())]
        matrices = [parameter for parameter in self._parameters if parameter.ndim > 1]
        others = [parameter for parameter in self._parameters if parameter.ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True,
        )
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Start with fresh moments."""
        for parameter in self._parameters:
            self._adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }

    @property
    def updates(self) -> int:
        """Steps behind the moments."""
        return int(self._adamw.state[self._parameters[0]]["step"].item())

    @updates.setter
    def updates(self, count: int) -> None:
        for parameter in self._parameters:
            self._adamw.state[parameter]["step"].fill_(count)

    def moments(self) -> dict[str, torch.Tensor]:
        """The moments by name, sharded as the parameters are, for a checkpoint to read or to fill."""
        named = sorted(self.model.named_parameters())
        state = self._adamw.state
        return {f"{moment}.{name}": state[parameter][moment] for name, parameter in named for moment in MOMENTS}

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Learn from one batch (a collective). Skipped on all ranks where any rank's loss or gradient is not finite."""
        loss = self._backward(batch)
        with torch.no_grad():
            gradients = [_local(parameter.grad) for parameter in self._parameters if parameter.grad is not None]
            norms = torch.stack(torch._foreach_norm(gradients))
            squares = norms.double().square().sum().item()
            loss, squares = self._ranks.sum([loss, squares])
            norm = math.sqrt(squares) if squares >= 0 else math.nan
            applied = math.isfinite(loss) and math.isfinite(norm)
            if applied:
                if self._clip and norm > self._clip:
                    torch._foreach_mul_(gradients, self._clip / (norm + 1e-6))
                for group in self._adamw.param_groups:
                    group["lr"] = learning_rate
                self._adamw.step()
        self._adamw.zero_grad()
        return StepResult(loss / batch.tokens, batch.tokens, True) if applied else StepResult(math.nan, 0, False)

    def _backward(self, batch: Batch) -> float:
        """Sum of this rank's losses. FSDP averages gradients over ranks, hence the factor."""
        total = 0.0
        for inputs, targets in self._micro_batches(batch):
            loss = summed_loss(self.model, inputs, targets)
            (loss * (self._ranks.size / batch.tokens)).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rows = batch.inputs.shape[0]
        size = self._micro or rows
        device = self._ranks.compute.device
        for start in range(0, rows, size):
            part = slice(start, start + size)
            yield torch.from_numpy(batch.inputs[part]).to(device), torch.from_numpy(batch.targets[part]).to(device)


def summed_loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross entropies of all real targets, nats; 0 (with a gradient of 0) where there is none."""
    logits = model(input_ids=inputs, use_cache=False).logits
    logits = logits.float().flatten(0, 1)
    return functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
