"""The processes that do one stage together. Where there is only one, every function here does nothing but answer so."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

# Others wait while the first measures a model or writes a checkpoint. A process that died is noticed by who started it.
TIMEOUT = timedelta(hours=12)


def join_group() -> None:
    """Become one of the processes that torchrun's environment tells of: on its own accelerator, if there is one,
    and with one's share of the cores that one process would have had."""
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)


def leave_others() -> bool:
    """Be done with what is done together, all at the same moment. Returns whether this is the process that goes on alone."""
    first = is_first()
    if dist.is_initialized():
        dist.destroy_process_group()
    return first


def number_of_processes() -> int:
    """How many processes work on this stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_number() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that reads and writes progress, speaks, and leaves the result."""
    return process_number() == 0


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all processes, where and of what type it was."""
    if number_of_processes() == 1:
        return values
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    total = values.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total.to(values.device)
