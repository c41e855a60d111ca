"""The mix stage: how much of each expert goes into the merged model, layer by layer.

Leaves coefficients.json: {"method", "shared_expert", "layers": [{"weights": [share of each expert], "movement": float}]};
the shares sum to one, the shared expert's comes first, movement is the largest change of a share from its start.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from xft_core.artifacts import Workspace
from xft_core.config import MergeConfig
from xft_core.data.rows import Rows, load_rows
from xft_core.held_out import device_for_work, held_out_loss
from xft_core.learned_mixing import MixedModel, learn
from xft_core.locations import find_model
from xft_core.mixing_weights import MixtureReader, mixing_weights
from xft_core.models import DTYPES, load_model
from xft_core.stages import MixStage
from xft_core.tracking import MetricsLog

logger = logging.getLogger(__name__)

START_OF_LEARNED_SHARED_WEIGHT = 0.75  # the paper's lambda, where it is learned too


def run(config: MixStage, workspace: Workspace) -> dict[str, Any]:
    """Choose the coefficients by config.merge.method.

    Metrics: movement_max and movement_mean over layers, shared_expert_weight_mean; for the method learned also
    held_out_nll_merged and held_out_nll_uniform (nats per response token), and steps.
    """
    merge, directory = config.merge, find_model(config.model)
    with MixtureReader(directory) as mixture:
        start_LN = starting_weights(merge, mixture)
        metrics: dict[str, Any] = {}
        if merge.method == "learned":
            weight_LN, metrics = _learn(config, workspace, mixture, start_LN)
        elif merge.method == "routing":
            weight_LN = routing_means(directory, load_rows(config.data, "train"), merge)
        else:
            weight_LN = start_LN
        shared_expert = mixture.upcycle.shared_expert
    movement_L = (weight_LN - start_LN).abs().amax(dim=1)
    layers = [
        {"weights": weights, "movement": movement}
        for weights, movement in zip(weight_LN.tolist(), movement_L.tolist(), strict=True)]
    coefficients = {"method": merge.method, "shared_expert": shared_expert, "layers": layers}
    (workspace.output / "coefficients.json").write_text(json.dumps(coefficients, indent=1), encoding="utf-8")
    metrics |= {"movement_max": float(movement_L.max()), "movement_mean": float(movement_L.mean())}
    if shared_expert:
        metrics["shared_expert_weight_mean"] = float(weight_LN[:, 0].mean())
    return metrics


def starting_weights(merge: MergeConfig, mixture: MixtureReader) -> torch.Tensor:
    """The shares, fp64 L,N, of the methods that need no data; for learned and routing those they are compared with."""
    num_layers, num_experts = mixture.num_layers, mixture.num_experts
    if merge.method == "ewa":
        return torch.full((num_layers, num_experts), 1 / num_experts, dtype=torch.float64)
    shared_weight_L = None
    if mixture.upcycle.shared_expert:
        fixed = START_OF_LEARNED_SHARED_WEIGHT if merge.shared_expert_weight is None else merge.shared_expert_weight
        shared_weight_L = torch.full((num_layers,), 1.0 if merge.method == "shared_only" else fixed, dtype=torch.float64)
    num_routed = num_experts - int(mixture.upcycle.shared_expert)
    return mixing_weights(torch.zeros(num_layers, num_routed, dtype=torch.float64), shared_weight_L)


def routing_means(directory: Path, rows: Rows, merge: MergeConfig) -> torch.Tensor:
    """The mean routing weights of every layer over training rows, fp64 L,N, scaled to sum to one."""
    model = load_model(directory, DTYPES[merge.precision]).to(device_for_work())
    layers = held_out_loss(model, rows, max_rows=merge.calibration_rows).router
    weight_LN = torch.tensor([layer.mean_weights for layer in layers], dtype=torch.float64)
    return weight_LN / weight_LN.sum(dim=1, keepdim=True)


def load_coefficients(directory: Path) -> torch.Tensor:
    """The shares of a mix artifact, fp64 L,N."""
    content = json.loads((directory / "coefficients.json").read_text(encoding="utf-8"))
    return torch.tensor([layer["weights"] for layer in content["layers"]], dtype=torch.float64)


def _learn(
    config: MixStage, workspace: Workspace, mixture: MixtureReader, start_LN: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, Any]]:
    merge, held_out_rows = config.merge, load_rows(config.data, "held_out")
    mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work())
    mixed.apply(start_LN)
    uniform = held_out_loss(mixed.model, held_out_rows).nll
    metrics_log = MetricsLog(workspace.metrics_path)
    if not workspace.metrics_path.is_file():
        metrics_log.log(0, {"held_out_nll": uniform})
    weight_LN, steps = learn(
        mixed, load_rows(config.data, "train"), merge, config.seed, workspace.checkpoints, metrics_log,
        START_OF_LEARNED_SHARED_WEIGHT)
    mixed.apply(weight_LN)
    learned = held_out_loss(mixed.model, held_out_rows).nll
    metrics_log.log(steps, {"held_out_nll": learned})
    logger.info("mix: held-out loss %.4f learned, %.4f uniform", learned, uniform)
    return weight_LN, {"held_out_nll_merged": learned, "held_out_nll_uniform": uniform, "steps": steps}
