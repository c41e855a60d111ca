"""Adafactor for parameters that FSDP2 has sharded along their first dimension."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers.optimization import Adafactor


class ShardedAdafactor(Adafactor):
    """transformers' Adafactor, whose statistics are sharded where the parameter's are: what is a mean over the sharded
    dimension is the same, and whole, in every process."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. The statistics of a parameter are made before its first, as tensors of its own kind."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter] = _no_statistics(parameter)
        return super().step(closure)

    @staticmethod
    def _rms(tensor: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(tensor)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm) / tensor.numel() ** 0.5


def placement(parameter: DTensor, name: str) -> list[Shard | Replicate]:
    """How a statistic of a sharded parameter is placed: as the parameter, but for the means over the rows of a matrix."""
    whole = name == "exp_avg_sq_col" and parameter.dim() == 2
    return [Replicate() if whole else item for item in parameter.placements]


def _no_statistics(parameter: torch.Tensor) -> dict[str, Any]:
    shapes = {"exp_avg_sq": parameter.shape}
    if parameter.dim() >= 2:
        shapes = {
            "exp_avg_sq_row": parameter.shape[:-1], "exp_avg_sq_col": parameter.shape[:-2] + parameter.shape[-1:]}
    return {"step": 0, "RMS": 0} | {name: _zeros(parameter, name, shape) for name, shape in shapes.items()}


def _zeros(parameter: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if not isinstance(parameter, DTensor):
        return torch.zeros(shape, dtype=dtype, device=parameter.device)
    return torch.distributed.tensor.zeros(
        *shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=placement(parameter, name))
