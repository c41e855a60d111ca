"""The mix stage: how much of each expert goes into the merged model, layer by layer.

Leaves coefficients.json: {"method", "shared_expert", "layers": [{"weights": [share of each expert], "movement": float}]};
the shares sum to one, the shared expert's comes first, movement is the largest difference of a share from uniform mixing.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from xft_core.data.rows import Rows, load_rows
from xft_core.errors import ArtifactError, RecipeError
from xft_core.files.locate import find_model
from xft_core.files.parsing import parse_json
from xft_core.mixing.learning import MixedModel, learn
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.models.loading import DTYPES, load_model
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.group import is_first, leave_others
from xft_core.stages.configs import MixStage
from xft_core.store.artifacts import Workspace
from xft_core.store.curves import MetricsLog
from xft_core.training.held_out import device_for_work, held_out_loss

logger = logging.getLogger(__name__)

START_OF_LEARNED_SHARED_WEIGHT = 0.75  # the paper's lambda, where it is learned too


def run(config: MixStage, workspace: Workspace) -> dict[str, Any]:
    """Choose the coefficients by config.merge.method, and measure them beside uniform ones.

    Of several processes the first does all but the learning alone; the others return nothing.

    Metrics: held_out_nll_merged and held_out_nll_uniform (nats per response token), movement_max and movement_mean over
    layers, shared_expert_weight_mean, and steps for the method learned.
    """
    merge, directory = config.merge, find_model(config.model)
    metrics_log = MetricsLog(workspace.metrics_path)
    with MixtureReader(directory) as mixture:
        shared_expert = mixture.upcycle.shared_expert
        if merge.method == "shared_only" and not shared_expert:
            raise RecipeError(f"merge.method is shared_only, but {config.model!r} has no shared expert: choose another method")
        held_out_rows = load_rows(config.data, "held_out")
        uniform_LN = uniform_weights(merge, mixture)
        mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work())
        mixed.apply(uniform_LN)
        metrics: dict[str, Any] = {}
        if is_first():
            metrics["held_out_nll_uniform"] = held_out_loss(mixed.model, held_out_rows).nll
            metrics_log.begin()
            metrics_log.set(0, {"held_out_nll": metrics["held_out_nll_uniform"]})
        if merge.method == "learned":
            weight_LN, metrics["steps"] = learn(
                mixed, load_rows(config.data, "train"), merge, config.seed, workspace.checkpoints, metrics_log,
                START_OF_LEARNED_SHARED_WEIGHT)
        elif merge.method == "routing":
            weight_LN = routing_means(directory, load_rows(config.data, "train"), merge)
        else:
            weight_LN = fixed_weights(merge, uniform_LN)
        if not leave_others():
            return {}
        mixed.apply(weight_LN)
        metrics["held_out_nll_merged"] = held_out_loss(mixed.model, held_out_rows).nll
    if merge.method == "learned":
        metrics_log.set(metrics["steps"], {"held_out_nll": metrics["held_out_nll_merged"]})
    logger.info(
        "mix: held-out loss %.4f %s, %.4f uniform", metrics["held_out_nll_merged"], merge.method,
        metrics["held_out_nll_uniform"])
    movement_L = (weight_LN - uniform_LN).abs().amax(dim=1)
    layers = [
        {"weights": weights, "movement": movement}
        for weights, movement in zip(weight_LN.tolist(), movement_L.tolist(), strict=True)]
    coefficients = {"method": merge.method, "shared_expert": shared_expert, "layers": layers}
    (workspace.output / "coefficients.json").write_text(json.dumps(coefficients, indent=1), encoding="utf-8")
    metrics |= {"movement_max": float(movement_L.max()), "movement_mean": float(movement_L.mean())}
    if shared_expert:
        metrics["shared_expert_weight_mean"] = float(weight_LN[:, 0].mean())
    return metrics


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
        content = parse_json((directory / "coefficients.json").read_bytes())
        weight_LN = torch.tensor([layer["weights"] for layer in content["layers"]], dtype=torch.float64)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        raise ArtifactError(f"{str(directory)!r} holds no mixing coefficients. Give the directory that mix made.") from None
    if weight_LN.dim() != 2 or not torch.allclose(weight_LN.sum(1), torch.ones(len(weight_LN), dtype=torch.float64)):
        raise ArtifactError(f"The mixing coefficients in {str(directory)!r} are no shares: in each layer they must sum to one.")
    return weight_LN
