"""The mix stage: how much of each expert goes into the merged model, layer by layer.

Leaves coefficients.json (store/results/mix.py); of an operator also the merged FFNs, a file for each layer
(mixing/operators/merged.py), and of a search trials.json (store/results/trials.py).
"""

import logging
import math

import torch

from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError
from xft_core.files.locate import find_model
from xft_core.mixing.coefficients import START_OF_LEARNED_SHARED_WEIGHT, fixed_weights, routing_means, uniform_weights
from xft_core.mixing.learning import MixedModel, learn
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.operators.merged import BaseModel, layer_file, load_layer, merge_in_closed_form, merge_on_deltas
from xft_core.mixing.search import best_trial, check_searchable, search
from xft_core.models.config import DTYPES
from xft_core.recipe.inactive_fields import needs_base
from xft_core.recipe.sections.merge import OPERATORS
from xft_core.runtime.device import device_for_work
from xft_core.runtime.group import is_first, leave_others
from xft_core.stages.configs import MixStage
from xft_core.store.curves import MetricsLog
from xft_core.store.results.curve import CurveValues
from xft_core.store.results.mix import CoefficientsFile, LayerCoefficients, MixMetrics
from xft_core.store.results.trials import Trial, TrialsFile
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss

logger = logging.getLogger(__name__)



def run(config: MixStage, workspace: Workspace) -> MixMetrics | None:
    """Choose the coefficients by config.merge.method, and measure them beside uniform ones.

    Of several processes the first does all but the learning alone; the others return None.
    """
    if config.merge.method in OPERATORS:
        return _operate(config, workspace)
    merge, directory = config.merge, find_model(config.model)
    metrics_log = MetricsLog(workspace.metrics_path)
    with MixtureReader(directory) as mixture:
        shared_expert = mixture.upcycle.shared_expert
        if merge.method == "shared_only" and not shared_expert:
            raise RecipeError(f"merge.method is shared_only, but {config.model!r} has no shared expert: choose another method")
        if merge.search != "none":
            check_searchable(merge, mixture)
        _check_no_fusion(config, mixture)
        held_out_rows = load_rows(config.data, "held_out")
        uniform_LN = uniform_weights(merge, mixture)
        mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work())
        mixed.apply(uniform_LN)
        uniform, steps = math.nan, None
        if is_first():
            uniform = held_out_loss(mixed.model, held_out_rows).nll
            metrics_log.begin()
            metrics_log.set(0, CurveValues(held_out_nll=uniform).flat())
        if merge.method == "learned":
            weight_LN, steps = learn(
                mixed, load_rows(config.data, "train"), merge, config.seed, workspace.checkpoints, metrics_log,
                START_OF_LEARNED_SHARED_WEIGHT)
        elif merge.method == "routing":
            weight_LN = routing_means(directory, load_rows(config.data, "train"), merge)
        else:
            weight_LN = fixed_weights(merge, uniform_LN)
        if not leave_others():
            return None
        trials: list[Trial] = []
        if merge.search != "none":
            weight_LN, trials = _search(config, mixed, weight_LN, workspace, metrics_log)
        mixed.apply(weight_LN)
        merged = held_out_loss(mixed.model, held_out_rows).nll
    if steps is not None:
        metrics_log.set(steps, CurveValues(held_out_nll=merged).flat())
    logger.info("mix: held-out loss %.4f %s, %.4f uniform", merged, merge.method, uniform)
    movement_L = (weight_LN - uniform_LN).abs().amax(dim=1)
    layers = [
        LayerCoefficients(weights=weights, movement=movement)
        for weights, movement in zip(weight_LN.tolist(), movement_L.tolist(), strict=True)]
    CoefficientsFile(method=merge.method, shared_expert=shared_expert, layers=layers).write(workspace.output)
    return MixMetrics(
        held_out_nll_uniform=uniform, steps=steps, held_out_nll_merged=merged, movement_max=float(movement_L.max()),
        movement_mean=float(movement_L.mean()),
        shared_expert_weight_mean=float(weight_LN[:, 0].mean()) if shared_expert else None,
        search_trials=len(trials) or None, search_nll_start=trials[0].nll if trials else None,
        search_nll_chosen=best_trial(trials).nll if trials else None)


def _check_no_fusion(config: MixStage, mixture: MixtureReader) -> None:
    if mixture.upcycle.mode == "fusion" and config.merge.method != "ewa":
        raise RecipeError(
            f"merge.method is {config.merge.method}, but {config.model!r} is a fusion of experts, whose model is their mean: "
            "choose ewa")


def _operate(config: MixStage, workspace: Workspace) -> MixMetrics:
    """Have the operator make every FFN, measure them beside uniform mixing, and leave them with the shares it starts from."""
    merge, source, directory = config.merge, find_model(config.model), workspace.checkpoints
    metrics_log = MetricsLog(workspace.metrics_path)
    with MixtureReader(source) as mixture:
        _check_no_fusion(config, mixture)
        held_out_rows, uniform_LN = load_rows(config.data, "held_out"), uniform_weights(merge, mixture)
        mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work())
        mixed.apply(uniform_LN)
        uniform = held_out_loss(mixed.model, held_out_rows).nll
        metrics_log.begin()
        metrics_log.set(0, CurveValues(held_out_nll=uniform).flat())
        weight_LN = uniform_LN
        if merge.method == "model_stock":
            weight_LN = torch.full_like(uniform_LN, 1 / mixture.num_experts)
        if needs_base(merge):
            with BaseModel(config.inputs()["base"], mixture) as base:
                merge_on_deltas(mixture, base, merge, weight_LN, config.seed, directory)
        else:
            weight_LN = merge_in_closed_form(
                mixture, source, mixed.model, load_rows(config.data, "train"), merge, weight_LN, directory)
        for layer in range(mixture.num_layers):
            tensors = load_layer(directory, layer)
            with torch.no_grad():
                for tensor in mixture.expert_tensors(layer):
                    mixed.model.get_parameter(tensor.name).copy_(tensors[tensor.name])
            (directory / layer_file(layer)).rename(workspace.output / layer_file(layer))
        merged = held_out_loss(mixed.model, held_out_rows).nll
        shared_expert = mixture.upcycle.shared_expert
    logger.info("mix: held-out loss %.4f %s, %.4f uniform", merged, merge.method, uniform)
    movement_L = (weight_LN - uniform_LN).abs().amax(dim=1)
    CoefficientsFile(
        method=merge.method, shared_expert=shared_expert, merged_ffns=True,
        layers=[LayerCoefficients(weights=weights, movement=movement)
                for weights, movement in zip(weight_LN.tolist(), movement_L.tolist(), strict=True)]).write(workspace.output)
    return MixMetrics.from_flat({
        "held_out_nll_uniform": uniform, "held_out_nll_merged": merged, "movement_max": float(movement_L.max()),
        "movement_mean": float(movement_L.mean()),
        **({"shared_expert_weight_mean": float(weight_LN[:, 0].mean())} if shared_expert else {})})


def _search(
    config: MixStage, mixed: MixedModel, start_LN: torch.Tensor, workspace: Workspace, metrics_log: MetricsLog,
) -> tuple[torch.Tensor, list[Trial]]:
    """Search from ``start_LN`` on the rows that coefficients are chosen on; the held-out rows are those of the report."""
    merge, split = config.merge, "train"
    rows = load_rows(config.data, split)
    best = math.inf

    def loss(weight_LN: torch.Tensor) -> float:
        mixed.apply(weight_LN)
        return held_out_loss(mixed.model, rows, max_rows=merge.search_rows).nll

    def told(trial: Trial) -> None:
        nonlocal best
        if trial.nll is None:
            return
        best = min(best, trial.nll)
        metrics_log.set(trial.number, CurveValues(search_nll=trial.nll, search_best_nll=best).flat())

    weight_LN, trials = search(merge, start_LN, loss, config.seed, workspace.checkpoints / "trials.jsonl", told)
    layers = mixed.mixture.num_layers
    TrialsFile(
        search=merge.search, split=split, rows=min(merge.search_rows, len(rows)),
        layers_per_group=layers if merge.search == "golden" else min(merge.search_layers_per_group or layers, layers),
        chosen=best_trial(trials).number, trials=trials).write(workspace.output)
    return weight_LN, trials
