"""The mix stage: choose how much of each expert goes into the merged model, layer by layer.

Writes coefficients.json, see store/results/mix.py. With a granularity other than layer it also writes groups.safetensors;
depending on the options, headroom.json, cross_validation.json and features.safetensors; for an operator, the merged FFNs, one
file for each layer (mixing/operators/merged.py); and for a search, trials.json (store/results/trials.py).
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

from xft_core.data.rows import Rows, load_rows
from xft_core.errors import DataError, RecipeError
from xft_core.files.locate import find_model
from xft_core.mixing.coefficients import (
    START_OF_LEARNED_SHARED_WEIGHT,
    Coefficients,
    fixed_weights,
    routing_means,
    uniform_weights,
)
from xft_core.mixing.cross_validation import choose_penalty
from xft_core.mixing.delta_scale import scaled
from xft_core.mixing.generators.amortized import load_generator, new_generator
from xft_core.mixing.generators.features import features_of
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.headroom import look_for_headroom
from xft_core.mixing.learning import Learned, learn
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.objective import Distillation, Objective, nll
from xft_core.mixing.operators.merged import BaseModel, layer_file, load_layer, merge_in_closed_form, merge_on_deltas
from xft_core.mixing.parameters import MixingParameters
from xft_core.mixing.search import best_trial, check_searchable, search
from xft_core.models.config import DTYPES
from xft_core.recipe.inactive_fields import learns, needs_features, tests_headroom
from xft_core.recipe.sections import MergeConfig
from xft_core.recipe.sections.merge import ON_DELTAS, OPERATORS
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
    """Choose the coefficients by config.merge.method, and measure them against uniform ones.

    With several processes, the first alone does everything except the learning; the others return None.
    """
    if config.merge.method in OPERATORS:
        return _operate(config, workspace)
    merge, directory = config.merge, find_model(config.model)
    metrics_log = MetricsLog(workspace.metrics_path)
    with MixtureReader(directory, config.inputs().get("base")) as mixture:
        shared_expert = mixture.upcycle.shared_expert
        if merge.method == "shared_only" and not shared_expert:
            raise RecipeError(f"merge.method is shared_only, but {config.model!r} has no shared expert: choose another method")
        _check_no_fusion(config, mixture)
        if merge.search != "none":
            check_searchable(merge, mixture)
        held_out_rows = load_rows(config.data, "held_out")
        granularity = Granularity.of(merge, mixture)
        mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work(), granularity)
        uniform_LN = uniform_weights(merge, mixture)
        uniform_start = granularity.repeated(uniform_LN)
        _apply(mixed, _with_fixed_scale(uniform_start, merge, granularity))
        uniform, steps = math.nan, None
        if is_first():
            uniform = held_out_loss(mixed.model, held_out_rows).nll
            metrics_log.begin()
            metrics_log.set(0, CurveValues(held_out_nll=uniform).flat())
        found = MixMetrics.from_flat({})
        if learns(merge):
            learned, found = _learned(config, mixed, workspace, metrics_log, uniform_LN)
            steps = None if merge.generator_from is not None else learned.steps
            chosen = Coefficients(learned.weight, granularity, learned.delta_scale_L, learned.outside_scale)
        else:
            weight_LN = fixed_weights(merge, uniform_LN) if merge.method != "routing" else routing_means(
                directory, _rows_to_choose_on(config.data, merge), merge)
            chosen = _with_fixed_scale(weight_LN, merge, granularity)
        if not leave_others():
            return None
        trials: list[Trial] = []
        if merge.search != "none":
            chosen, trials = _search(config, mixed, chosen, workspace, metrics_log)
        unscaled = None
        if chosen.needs_base:
            mixed.apply(chosen.weight)
            unscaled = held_out_loss(mixed.model, held_out_rows).nll
        _apply(mixed, chosen)
        merged = held_out_loss(mixed.model, held_out_rows).nll
    if steps is not None:
        metrics_log.set(steps, CurveValues(held_out_nll=merged).flat())
    logger.info("mix: held-out loss %.4f %s, %.4f uniform", merged, merge.method, uniform)
    movement_L = (chosen.weight - uniform_start).abs().flatten(1).amax(dim=1)
    chosen.save(workspace.output, merge.method, shared_expert, movement_L)
    mean_LN, gamma_L = chosen.mean_LN, chosen.delta_scale_L if chosen.needs_base else None
    moved = None if gamma_L is None or merge.delta_scale is not None else float((gamma_L - 1).abs().max())
    return found.model_copy(update={
        "held_out_nll_uniform": uniform, "steps": steps, "held_out_nll_merged": merged,
        "movement_max": float(movement_L.max()), "movement_mean": float(movement_L.mean()),
        "shared_expert_weight_mean": float(mean_LN[:, 0].mean()) if shared_expert else None,
        "delta_scale_mean": None if gamma_L is None else float(gamma_L.mean()), "held_out_nll_unscaled": unscaled,
        "delta_scale_moved": moved, "search_trials": len(trials) or None,
        "search_nll_start": trials[0].nll if trials else None,
        "search_nll_chosen": best_trial(trials).nll if trials else None})


def _check_no_fusion(config: MixStage, mixture: MixtureReader) -> None:
    if mixture.upcycle.mode == "fusion" and config.merge.method != "ewa":
        raise RecipeError(
            f"merge.method is {config.merge.method}, but {config.model!r} is a fusion of experts, which merges to their mean: "
            "choose ewa")


def _operate(config: MixStage, workspace: Workspace) -> MixMetrics:
    """Let the operator merge every FFN, measure the result against uniform mixing, and write it with the initial shares."""
    merge, source, directory = config.merge, find_model(config.model), workspace.checkpoints
    metrics_log = MetricsLog(workspace.metrics_path)
    with MixtureReader(source) as mixture:
        _check_no_fusion(config, mixture)
        held_out_rows, uniform_LN = load_rows(config.data, "held_out"), uniform_weights(merge, mixture)
        mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work(), Granularity.of(merge, mixture))
        mixed.apply(uniform_LN)
        uniform = held_out_loss(mixed.model, held_out_rows).nll
        metrics_log.begin()
        metrics_log.set(0, CurveValues(held_out_nll=uniform).flat())
        weight_LN = uniform_LN
        if merge.method == "model_stock":
            weight_LN = torch.full_like(uniform_LN, 1 / mixture.num_experts)
        if merge.method in ON_DELTAS:
            with BaseModel(config.inputs()["base"], mixture) as base:
                merge_on_deltas(mixture, base, merge, weight_LN, config.seed, directory)
        else:
            weight_LN = merge_in_closed_form(
                mixture, source, mixed.model, _rows_to_choose_on(config.data, merge), merge, weight_LN, directory)
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
    config: MixStage, mixed: MixedModel, start: Coefficients, workspace: Workspace, metrics_log: MetricsLog,
) -> tuple[Coefficients, list[Trial]]:
    """Search from ``start`` on the rows that coefficients are chosen on, never on the held-out rows of the report."""
    merge, rows = config.merge, _rows_to_choose_on(config.data, config.merge)
    best = math.inf

    def loss(found: Coefficients) -> float:
        _apply(mixed, found)
        return held_out_loss(mixed.model, rows, max_rows=merge.search_rows).nll

    def told(trial: Trial) -> None:
        nonlocal best
        if trial.nll is None:
            return
        best = min(best, trial.nll)
        metrics_log.set(trial.number, CurveValues(search_nll=trial.nll, search_best_nll=best).flat())

    chosen, trials = search(merge, start, loss, config.seed, workspace.checkpoints / "trials.jsonl", told)
    layers = mixed.mixture.num_layers
    TrialsFile(
        search=merge.search, split="train" if merge.rows == "held_in" else "reserved", rows=min(merge.search_rows, len(rows)),
        layers_per_group=layers if merge.search == "golden" else min(merge.search_layers_per_group or layers, layers),
        chosen=best_trial(trials).number, trials=trials).write(workspace.output)
    return chosen, trials


def _learned(
    config: MixStage, mixed: MixedModel, workspace: Workspace, metrics_log: MetricsLog, uniform_LN: torch.Tensor,
) -> tuple[Learned, MixMetrics]:
    """Learn or predict the coefficients; return them with the measurements taken. Files go into the workspace's output."""
    merge, directory, output = config.merge, find_model(config.model), workspace.output
    rows = _rows_to_choose_on(config.data, merge)
    start = START_OF_LEARNED_SHARED_WEIGHT
    metrics = MixMetrics.from_flat({})
    new: Callable[[], torch.nn.Module | None] = lambda: None  # noqa: E731
    if needs_features(merge):
        features = features_of(mixed, directory, rows, merge.calibration_rows, uniform_LN)
        if is_first():
            features.save(output)
        if merge.generator_from is not None:
            generator = load_generator(config.inputs()["generator"], merge.generator, features)
            return _predicted(mixed, merge, generator, start), metrics.model_copy(update={"predicted": 1})
        if merge.generator != "free":
            kind = merge.generator
            new = lambda: new_generator(kind, features, config.seed)  # noqa: E731
    objective: Objective = nll
    if merge.objective == "distill":
        objective = Distillation(directory, mixed.model.dtype, mixed.model.device)
    if tests_headroom(merge):
        headroom = look_for_headroom(mixed, rows.first(merge.calibration_rows), merge, config.seed, start, objective)
        if is_first():
            headroom.write(output)
        metrics = metrics.model_copy(update={"headroom": headroom.headroom, "headroom_threshold": headroom.threshold})
        if headroom.headroom < headroom.threshold:
            logger.info("mix: nothing to learn: the headroom is below %g nats; using uniform mixing", headroom.threshold)
            return _at_start(mixed, merge, start), metrics.model_copy(update={"kept_uniform": 1})
    if merge.cross_validation:
        validated = choose_penalty(mixed, rows, merge, config.seed, workspace.checkpoints, start, objective, new)
        if validated is None:
            logger.warning("mix: %d rows are fewer than the folds of merge.cross_validation: merge.uniform_penalty is used "
                           "unchanged", len(rows))
            metrics = metrics.model_copy(update={"rows_too_few": len(rows)})
        else:
            if is_first():
                validated.write(output)
            merge = merge.model_copy(update={"uniform_penalty": validated.chosen})
            metrics = metrics.model_copy(update={"uniform_penalty": validated.chosen})
    learned = learn(
        mixed, rows, merge, config.seed, workspace.checkpoints, metrics_log, start, objective, new())
    return learned, metrics.model_copy(update={"kept_uniform": 1}) if learned.kept_start else metrics


@torch.no_grad()
def _at_start(mixed: MixedModel, merge: MergeConfig, shared_weight_start: float) -> Learned:
    """Return uniform mixing, the point where learning would have started."""
    return Learned.of(MixingParameters(mixed.mixture, merge, mixed.granularity, shared_weight_start), 0)


@torch.no_grad()
def _predicted(mixed: MixedModel, merge: MergeConfig, generator: torch.nn.Module, shared_weight_start: float) -> Learned:
    """Return the coefficients that a generator trained on earlier runs predicts from this run's features."""
    return Learned.of(MixingParameters(mixed.mixture, merge, mixed.granularity, shared_weight_start, generator), 0)


def _rows_to_choose_on(data: Path, merge: MergeConfig) -> Rows:
    if merge.rows == "held_in":
        return load_rows(data, "train")
    if not (data / "reserved.safetensors").is_file():
        raise DataError(
            f"merge.rows is reserved, but {str(data)!r} has no reserved rows: prepare the data with data.reserved_rows, or set "
            "merge.rows to held_in.")
    return load_rows(data, "reserved")


def _with_fixed_scale(weight: torch.Tensor, merge: MergeConfig, granularity: Granularity) -> Coefficients:
    """Return the shares with the recipe's gamma, or with gamma 1 if gamma is learned."""
    gamma = 1.0 if merge.delta_scale is None else merge.delta_scale
    if gamma == 1:
        return Coefficients(weight, granularity)
    gamma_L = torch.full((len(weight),), gamma, dtype=torch.float64)
    return Coefficients(weight, granularity, gamma_L, gamma if merge.delta_scale_scope == "model" else 1.0)


def _apply(mixed: MixedModel, chosen: Coefficients) -> None:
    gamma_L = chosen.delta_scale_L
    mixed.apply(chosen.weight if gamma_L is None else scaled(chosen.weight, gamma_L), chosen.outside_scale)
