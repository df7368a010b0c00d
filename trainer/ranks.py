"""The ranks of one peer as a group: who am I, and the few small collectives that keep them in step.

Values here are a handful of numbers on the CPU. Every method is a collective: all ranks call it, in the same order.
"""

import contextlib
import datetime as dt
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from atoll.protocol.errors import AtollError
from atoll.trainer.device import Compute, choose_compute

_PATIENCE = dt.timedelta(days=7)
"""Ranks wait for rank 0, which may wait for the network. A rank that dies closes its connections, which ends it."""


class RankLostError(AtollError):
    """Another rank of this peer stopped; its own message says why."""

    code = "rank_lost"


class Ranks:
    def __init__(self, compute: Compute) -> None:
        self.rank, self.size, self.compute = dist.get_rank(), dist.get_world_size(), compute
        self.mesh: DeviceMesh = init_device_mesh(compute.device.type, (self.size,), mesh_dim_names=("shard",))
        self.background = dist.new_group(backend="gloo", timeout=_PATIENCE)
        """For checkpoints that are written while training goes on: its collectives do not mix with the loop's."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64; the same bits on every rank."""
        if self.size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def from_lead(self, values: Sequence[int], count: int) -> list[int]:
        """`count` integers (below 2^63) from rank 0; what the others pass is ignored."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values if self.leads else [0] * count, dtype=torch.int64)
        dist.broadcast(tensor, src=0)
        return [int(value) for value in tensor.tolist()]

    @contextlib.contextmanager
    def lead_works(self) -> Iterator[None]:
        """Work of rank 0 that the others wait for: where it raises, they raise RankLostError instead of hanging.

        Rank 0 does its work in the body; the others' bodies must be empty of collectives, as rank 0's.
        """
        try:
            yield
        except BaseException:
            if self.leads:
                self.from_lead([0], 1)
            raise
        if not self.from_lead([1], 1)[0]:
            raise RankLostError("rank 0 stopped; its own message says why.")


@contextlib.contextmanager
def joined_ranks(rank: int, world_size: int, local_rank: int, store_file: Path) -> Iterator[Ranks]:
    """Meet the other ranks through a file that is new for this start; nothing listens beyond loopback."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    compute = choose_compute(local_rank)
    dist.init_process_group(
        compute.backend, init_method=f"file://{store_file}", rank=rank, world_size=world_size, timeout=_PATIENCE,
    )
    try:
        yield Ranks(compute)
    finally:
        dist.destroy_process_group()
