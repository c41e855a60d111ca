"""Mixing coefficients that need no training, and those written by a mix stage.

Shape suffixes: L layers, G groups of a layer (granularity.py), N experts.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xft_core.data.rows import Rows
from xft_core.errors import ArtifactError
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.device import device_for_work
from xft_core.store.results.mix import CoefficientsFile, LayerCoefficients
from xft_core.training.held_out import held_out_loss

START_OF_LEARNED_SHARED_WEIGHT = 0.75  # the paper's lambda, also the start of a learned one
GROUPS_FILE = "groups.safetensors"  # shares of every group, if granularity is not layer


@dataclass(frozen=True)
class Coefficients:
    """Everything that determines the dense model.

    ``weight``: shares of the experts, fp64 L,N, or L,G,N for a granularity other than layer; ``delta_scale_L``: gamma of every
    FFN, None if it is 1; ``outside_scale``: gamma of all other weights.
    """

    weight: torch.Tensor
    granularity: Granularity = field(default_factory=Granularity)
    delta_scale_L: torch.Tensor | None = None
    outside_scale: float = 1.0

    @property
    def mean_LN(self) -> torch.Tensor:
        """Shares of the experts, L,N, averaged over groups if there are several."""
        return self.weight if self.granularity.kind == "layer" else self.weight.mean(dim=1)

    @property
    def needs_base(self) -> bool:
        """Whether the base model has a share."""
        return self.outside_scale != 1 or (self.delta_scale_L is not None and bool((self.delta_scale_L != 1).any()))

    def save(self, directory: Path, method: str, shared_expert: bool, movement_L: torch.Tensor) -> None:
        """Write coefficients.json, and next to it the shares of groups."""
        layers = [
            LayerCoefficients(weights=weights, movement=movement)
            for weights, movement in zip(self.mean_LN.tolist(), movement_L.tolist(), strict=True)]
        if self.needs_base and self.delta_scale_L is not None:
            layers = [
                layer.model_copy(update={"delta_scale": gamma})
                for layer, gamma in zip(layers, self.delta_scale_L.tolist(), strict=True)]
        content = CoefficientsFile(method=method, shared_expert=shared_expert, layers=layers)
        if self.outside_scale != 1:
            content = content.model_copy(update={"delta_scale_outside": self.outside_scale})
        if self.granularity.kind != "layer":
            content = content.model_copy(update={"granularity": self.granularity.kind})
        content.write(directory)
        if self.granularity.kind != "layer":
            save_file({"weight": self.weight.contiguous()}, directory / GROUPS_FILE)


def uniform_weights(merge: MergeConfig, mixture: MixtureReader) -> torch.Tensor:
    """Uniform mixing, fp64 L,N: lambda for the shared expert and equal shares for the others; without one, equal shares."""
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


def load_mixing(directory: Path) -> Coefficients:
    """The coefficients that a mix stage wrote to ``directory``. Raises ArtifactError if it has none."""
    try:
        content = CoefficientsFile.parse((directory / CoefficientsFile.file_name).read_bytes())
        weight = torch.tensor([layer.weights for layer in content.layers], dtype=torch.float64)
        granularity = Granularity()
        if content.granularity != "layer":
            weight = load_file(directory / GROUPS_FILE)["weight"].double()
            granularity = Granularity(content.granularity, weight.shape[1])
        gammas = [layer.delta_scale for layer in content.layers]
        gamma_L = None if None in gammas else torch.tensor(gammas, dtype=torch.float64)
    except (OSError, ValueError, RuntimeError, KeyError, IndexError, SafetensorError):
        raise ArtifactError(f"{str(directory)!r} holds no mixing coefficients. Give a directory created by mix.") from None
    fitting = weight.dim() == (2 if granularity.kind == "layer" else 3) and len(weight) == len(content.layers)
    if not fitting or not torch.allclose(weight.sum(-1), torch.ones(weight.shape[:-1], dtype=torch.float64)):
        raise ArtifactError(f"The mixing coefficients in {str(directory)!r} must sum to one in each layer.")
    outside = 1.0 if content.delta_scale_outside is None else content.delta_scale_outside
    return Coefficients(weight, granularity, gamma_L, outside)


def load_coefficients(directory: Path) -> torch.Tensor:
    """The shares of a mix artifact whose granularity is layer, fp64 L,N.

    Raises ArtifactError for any other directory, and if shares of whole layers are not the full coefficients.
    """
    found = load_mixing(directory)
    if found.granularity.kind != "layer" or found.needs_base:
        raise ArtifactError(
            f"The mixing coefficients in {str(directory)!r} are of granularity {found.granularity.kind}"
            f"{' with a delta_scale' if found.needs_base else ''}: shares of whole layers are only part of them.")
    return found.weight
