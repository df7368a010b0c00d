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
    """AdamW on the model's shards, and the steps that drive it.

    AdamW sees each rank's plain local tensors: it is element-wise, and DTensor's dispatch costs a twentieth of a small
    model's step.
    """

    def __init__(self, model: nn.Module, settings: InnerSettings, ranks: Ranks, micro_batch_sequences: int = 0) -> None:
        """`micro_batch_sequences`: at most so many rows of this rank at once, gradients accumulated; 0: all of them."""
        self.model, self._clip, self._ranks, self._micro = model, settings.clip_norm, ranks, micro_batch_sequences
        self._sharded = dict(sorted(model.named_parameters()))
        self._local = {name: nn.Parameter(_local(parameter.detach())) for name, parameter in self._sharded.items()}
        matrices = [self._local[name] for name, parameter in self._sharded.items() if parameter.ndim > 1]
        others = [self._local[name] for name, parameter in self._sharded.items() if parameter.ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True,
        )
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Start with fresh moments."""
        for local in self._local.values():
            self._adamw.state[local] = {
                "step": torch.zeros((), dtype=torch.float32, device=local.device),
                **{moment: torch.zeros_like(local) for moment in MOMENTS},
            }

    @property
    def updates(self) -> int:
        """Steps behind the moments."""
        return int(next(iter(self._adamw.state.values()))["step"].item())

    @updates.setter
    def updates(self, count: int) -> None:
        for state in self._adamw.state.values():
            state["step"].fill_(count)

    def moments(self) -> dict[str, torch.Tensor]:
        """The moments by name, sharded as the parameters are, for a checkpoint to read or to fill in place."""
        return {
            f"{moment}.{name}": _placed_as(parameter, self._adamw.state[self._local[name]][moment])
            for name, parameter in self._sharded.items() for moment in MOMENTS
        }

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Learn from one batch (a collective). Skipped on all ranks where any rank's loss or gradient is not finite."""
        loss = self._backward(batch)
        with torch.no_grad():
            gradients = self._local_gradients()
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

    def _local_gradients(self) -> list[torch.Tensor]:
        """Move this step's gradients from the shards to the tensors that AdamW sees."""
        gradients = []
        for name, parameter in self._sharded.items():
            if parameter.grad is None:
                raise RuntimeError(f"no gradient reached {name}")
            local = self._local[name]
            local.data = _local(parameter.detach())  # FSDP may have laid the shard elsewhere at its first forward
            local.grad = _local(parameter.grad)
            parameter.grad = None
            gradients.append(local.grad)
        return gradients

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


def _placed_as(parameter: nn.Parameter, local: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return local
    mesh, shape = parameter.device_mesh, parameter.shape
    return DTensor.from_local(local, mesh, parameter.placements, shape=shape, stride=parameter.stride())
