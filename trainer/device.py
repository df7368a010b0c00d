"""All that depends on the kind of device, in one place: CUDA with NCCL where there is one, else the CPU with gloo.

Control values and checkpoints always travel over gloo on loopback, also beside NCCL: waiting in it costs no GPU time.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Compute:
    device: torch.device
    backend: str          # for init_process_group
    dtype: torch.dtype    # of parameters and activations during forward and backward; the master copy is float32

    @property
    def mixed(self) -> bool:
        return self.dtype is not torch.float32


def choose_compute(local_rank: int) -> Compute:
    """The device of a rank, made current. Only CUDA counts as an accelerator so far."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type != "cuda":
        return Compute(torch.device("cpu"), "gloo", torch.float32)
    torch.accelerator.set_device_index(local_rank)
    return Compute(torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl", torch.bfloat16)
