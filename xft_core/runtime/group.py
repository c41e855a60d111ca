"""The group of processes that run one stage together. With a single process, these functions have no effect."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

# The other processes wait while the first measures a model or writes a checkpoint. The launcher notices dead processes.
TIMEOUT = timedelta(hours=12)


def join_group() -> None:
    """Join the processes described by torchrun's environment variables: on a separate accelerator, if there is one, and with
    a share of the cores that a single process would have."""
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)


def leave_others() -> bool:
    """End the joint work, in all processes at the same time. Returns whether this is the process that continues alone."""
    first = is_first()
    if dist.is_initialized():
        dist.destroy_process_group()
    return first


def number_of_processes() -> int:
    """The number of processes that work on this stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_number() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that reads and writes progress, logs, and writes the result."""
    return process_number() == 0


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, on the original device and with the original type."""
    if number_of_processes() == 1:
        return values
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    total = values.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total.to(values.device)
