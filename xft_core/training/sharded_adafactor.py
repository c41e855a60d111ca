"""Adafactor for parameters that FSDP2 has sharded along their first dimension.

transformers' own Adafactor mixes its statistics with sharded tensors, which torch refuses. The arithmetic here is the same,
with the options that the Trainer sets (no first moment, no scaling by the parameter). Every process works on its part, and sums
over the sharded dimension are added up over the processes.
"""

from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros
from transformers.optimization import Adafactor

from xft_core.runtime.group import summed


class ShardedAdafactor(Adafactor):
    """transformers' Adafactor with another step. Its gathered state is that of a single process."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every parameter. Every process must call it."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: DTensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_no_statistics(parameter))
        state["step"] += 1
        decay = 1.0 - state["step"] ** group["decay_rate"]
        gradient = _wide(parameter.grad.to_local())  # type: ignore[union-attr]
        square = gradient ** 2 + group["eps"][0]
        if parameter.dim() >= 2:
            row, column = state["exp_avg_sq_row"].to_local(), state["exp_avg_sq_col"].to_local()
            sharded = parameter.dim() == 2  # the dimension that a column is a mean over; stacked experts keep their own
            columns = summed(square.sum(-2)) / parameter.shape[-2] if sharded else square.mean(-2)
            row.mul_(decay).add_(square.mean(-1), alpha=1.0 - decay)
            column.mul_(decay).add_(columns, alpha=1.0 - decay)
            mean = summed(row.sum(-1, keepdim=True)) / parameter.shape[-2] if sharded else row.mean(-1, keepdim=True)
            update = (row / mean).rsqrt_().unsqueeze(-1) * column.unsqueeze(-2).rsqrt() * gradient
        else:
            average = state["exp_avg_sq"].to_local()
            average.mul_(decay).add_(square, alpha=1.0 - decay)
            update = average.rsqrt() * gradient
        size = (summed(update.square().sum()) / parameter.numel()).sqrt()
        update.mul_(group["lr"] / (size / group["clip_threshold"]).clamp_(min=1.0))
        weights = parameter.to_local()
        wide = _wide(weights)
        if group["weight_decay"]:
            wide.mul_(1.0 - group["weight_decay"] * group["lr"])
        weights.copy_(wide.sub_(update))


def placements(parameter: DTensor, name: str) -> list[Shard | Replicate]:
    """The placement of a sharded parameter's statistic: as the parameter, except for the means over the rows of a matrix."""
    whole = name == "exp_avg_sq_col" and parameter.dim() == 2
    return [Replicate() if whole else Shard(0) for _ in parameter.placements]


def _no_statistics(parameter: DTensor) -> dict[str, Any]:
    shapes = {"exp_avg_sq": parameter.shape}
    if parameter.dim() >= 2:
        shapes = {
            "exp_avg_sq_row": parameter.shape[:-1], "exp_avg_sq_col": parameter.shape[:-2] + parameter.shape[-1:]}
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return {"step": 0, "RMS": 0} | {
        name: zeros(*shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=placements(parameter, name))
        for name, shape in shapes.items()}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
