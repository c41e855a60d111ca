"""Mixing coefficients that need no training, and those that a mix stage left behind."""

from pathlib import Path

import torch

from xft_core.data.rows import Rows
from xft_core.errors import ArtifactError
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.device import device_for_work
from xft_core.store.results.mix import CoefficientsFile
from xft_core.training.held_out import held_out_loss

START_OF_LEARNED_SHARED_WEIGHT = 0.75  # the paper's lambda, where it is learned too


def uniform_weights(merge: MergeConfig, mixture: MixtureReader) -> torch.Tensor:
    """Uniform mixing, fp64 L,N: lambda for the shared expert and equal shares of the rest; equal shares without one."""
    num_routed = mixture.num_experts - int(mixture.upcycle.shared_expert)
    shared_weight_L = None
    if mixture.upcycle.shared_expert:
        fixed = START_OF_LEARNED_SHARED_WEIGHT if merge.shared_expert_weight is None else merge.shared_expert_weight
        shared_weight_L = torch.full((mixture.num_layers,), fixed, dtype=torch.float64)
    return mixing_weights(torch.zeros(mixture.num_layers, num_routed, dtype=torch.float64), shared_weight_L)


def fixed_weights(merge: MergeConfig, uniform_LN: torch.Tensor) -> torch.Tensor:
    """The shares, fp64 L,N, of the methods that need no data: uniform, ewa and shared_only."""
    if merge.method == "ewa":
        return torch.full_like(uniform_LN, 1 / uniform_LN.shape[1])
    if merge.method == "shared_only":
        return torch.eye(uniform_LN.shape[1], dtype=uniform_LN.dtype)[0].expand_as(uniform_LN).clone()
    assert merge.method == "uniform"
    return uniform_LN


def routing_means(directory: Path, rows: Rows, merge: MergeConfig) -> torch.Tensor:
    """The mean routing weights of every layer over training rows, fp64 L,N, scaled to sum to one."""
    model = load_model(directory, DTYPES[merge.precision]).to(device_for_work())
    layers = held_out_loss(model, rows, max_rows=merge.calibration_rows).router
    weight_LN = torch.tensor([layer.mean_weights for layer in layers], dtype=torch.float64)
    return weight_LN / weight_LN.sum(dim=1, keepdim=True)


def load_coefficients(directory: Path) -> torch.Tensor:
    """The shares of a mix artifact, fp64 L,N. Raises ArtifactError for a directory that is none."""
    try:
        content = CoefficientsFile.parse((directory / CoefficientsFile.file_name).read_bytes())
        weight_LN = torch.tensor([layer.weights for layer in content.layers], dtype=torch.float64)
    except (OSError, ValueError, RuntimeError):
        raise ArtifactError(f"{str(directory)!r} holds no mixing coefficients. Give the directory that mix made.") from None
    if weight_LN.dim() != 2 or not torch.allclose(weight_LN.sum(1), torch.ones(len(weight_LN), dtype=torch.float64)):
        raise ArtifactError(f"The mixing coefficients in {str(directory)!r} are no shares: in each layer they must sum to one.")
    return weight_LN
