"""The mean of a model's weights over its training, computed while it trains: one more copy of the weights, in fp32 at least.

    last_k    mean of the weights after ``count`` steps that are evenly spaced over the last 40% of all, the last among them
    ema       m_t = d m_{t-1} + (1 - d) W_t with d = 1 - 1 / (0.1 T), bias-corrected: m_T / (1 - d^T)

Both are running means, A <- A + a_t (W_t - A): weights that never change average to themselves, bit for bit. Which of them is
better varies. Averaging combined with a decaying rate is at least as good as either alone (arXiv 2502.06761).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from xft_core.errors import CheckpointError
from xft_core.recipe.sections import SftConfig
from xft_core.runtime.group import is_first
from xft_core.training.sharding import whole

FILE_NAME = "average.safetensors"  # in a checkpoint
LAST_PART = 0.4  # of the steps: where last_k averages
MEMORY = 0.1  # of the steps: about how far ema looks back


def average_share(sft: SftConfig, step: int, total_steps: int) -> float:
    """a_t: how far the average moves towards the weights after ``step`` (from 1); 0 for a step that is not averaged."""
    if sft.average == "ema":
        decay = max(0.0, 1 - 1 / (MEMORY * total_steps))
        return (1 - decay) / (1 - decay**step)
    chosen = averaged_steps(sft.average_count, total_steps)
    return 1 / (chosen.index(step) + 1) if step in chosen else 0.0


def averaged_steps(count: int, total_steps: int) -> list[int]:
    """The steps that last_k averages, in order: fewer than ``count`` if the training is too short for so many."""
    places = (total_steps * (1 - LAST_PART + LAST_PART * number / count) for number in range(1, count + 1))
    return sorted({max(1, round(place)) for place in places})


class RunningAverage:
    """The average of a model's parameters over ``total_steps``. Each of several processes averages its part."""

    def __init__(self, sft: SftConfig, total_steps: int) -> None:
        assert sft.average != "none"
        self._sft, self._total_steps = sft, total_steps
        self._averages: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, model: nn.Module, step: int) -> None:
        """Add the weights after ``step`` to the average."""
        share = average_share(self._sft, step, self._total_steps)
        if not share:
            return
        for name, parameter in model.named_parameters():
            weights = parameter.detach()
            if share == 1:
                self._averages[name] = weights.to(_wide(weights.dtype), copy=True)
            else:
                average = self._averages[name]
                average.add_(weights.to(average.dtype) - average, alpha=share)

    def save(self, checkpoint: Path) -> None:
        """Write the full average so far into a checkpoint, nothing before the first step. Every process must call it."""
        gathered = {name: whole(average) for name, average in self._averages.items()}
        if is_first() and gathered:
            save_file({name: tensor for name, tensor in gathered.items() if tensor is not None}, checkpoint / FILE_NAME)

    def load(self, model: nn.Module, checkpoint: Path) -> None:
        """Continue from the average that ``save`` wrote for this model."""
        if not (checkpoint / FILE_NAME).is_file():
            return  # no averaged step had been taken
        found = load_file(checkpoint / FILE_NAME)
        for name, parameter in model.named_parameters():
            average = found[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                average = distribute_tensor(average, parameter.device_mesh, parameter.placements, src_data_rank=None)
            self._averages[name] = average


@torch.no_grad()
def put_average(model: nn.Module, checkpoint: Path) -> None:
    """Load the average in the last checkpoint of a training into ``model``, which is not sharded, rounded once to its dtype.

    Raises CheckpointError if there is none.
    """
    try:
        found = load_file(checkpoint / FILE_NAME)
        for name, parameter in model.named_parameters():
            parameter.copy_(found[name])
    except (OSError, KeyError, RuntimeError):
        raise CheckpointError(f"{str(checkpoint)!r} holds no average of this model's weights. Train again.") from None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
