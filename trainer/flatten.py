"""The outer vector's canonical order, and the way of parameters in and out of it.

Order: ascending parameter name (by code point, as in `model.layers.10` before `model.layers.2`), each parameter in
row-major order, a tied parameter once, under the name that `named_parameters` gives it; no buffers. It depends neither
on sharding nor on the order in which a library's version registers its modules.

Both directions go parameter by parameter, so at most one whole parameter exists beside the shards. Rank 0 alone holds
vectors; every function here that takes `ranks` is a collective.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from atoll.trainer.model import reshard
from atoll.trainer.ranks import Ranks

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def of(self, vector: Vector) -> Vector:
        """The stretch of a vector that is this parameter, a view."""
        return vector[self.start:self.stop]


def canonical_entries(model: nn.Module) -> tuple[Entry, ...]:
    """Where each parameter lies in the outer vector; the last entry's `stop` is `numel`. Sharded or not is the same."""
    entries, start = [], 0
    for name, parameter in sorted(model.named_parameters()):
        entries.append(Entry(name, tuple(parameter.shape), start, start + parameter.numel()))
        start = entries[-1].stop
    return tuple(entries)


def numel(model: nn.Module) -> int:
    return canonical_entries(model)[-1].stop


@torch.no_grad()
def load(model: nn.Module, params: Vector | None, ranks: Ranks) -> None:
    """Set every parameter from rank 0's `(numel,) float32` outer vector; the other ranks pass None."""
    reshard(model)
    parameters = dict(model.named_parameters())
    for entry in canonical_entries(model):
        whole = torch.empty(entry.shape, dtype=torch.float32)
        if params is not None:
            np.copyto(whole.numpy().reshape(-1), entry.of(params))
        _set(parameters[entry.name], whole, ranks)


@torch.no_grad()
def pseudo_gradient(model: nn.Module, outer: Vector | None, out: Vector | None, ranks: Ranks) -> bool:
    """`out = outer - inner`, rank 0's vectors; whether it is finite everywhere, on all ranks alike.

    `out` is `(numel,) float32` and is filled also where the answer is False.
    """
    reshard(model)
    parameters, finite = dict(model.named_parameters()), True
    for entry in canonical_entries(model):
        parameter = parameters[entry.name]
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
        if outer is not None and out is not None:
            difference = entry.of(out)
            with np.errstate(all="ignore"):
                np.subtract(entry.of(outer), whole.cpu().numpy().reshape(-1), out=difference)
            finite = finite and bool(np.isfinite(difference).all())
    return bool(ranks.from_lead([finite], 1)[0])


def _set(parameter: nn.Parameter, whole: torch.Tensor, ranks: Ranks) -> None:
    whole = whole.to(parameter.device)
    if not isinstance(parameter, DTensor):
        parameter.copy_(whole)
    elif ranks.size == 1:
        parameter.to_local().copy_(whole)
    else:
        placed = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=0)
        parameter.to_local().copy_(placed.to_local())
