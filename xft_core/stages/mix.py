"""The mix stage: how much of each expert goes into the merged model, layer by layer.

Leaves coefficients.json, see store/results/mix.py.
"""

import logging
import math

from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError
from xft_core.files.locate import find_model
from xft_core.mixing.coefficients import START_OF_LEARNED_SHARED_WEIGHT, fixed_weights, routing_means, uniform_weights
from xft_core.mixing.learning import MixedModel, learn
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.config import DTYPES
from xft_core.runtime.device import device_for_work
from xft_core.runtime.group import is_first, leave_others
from xft_core.stages.configs import MixStage
from xft_core.store.curves import MetricsLog
from xft_core.store.results.curve import CurveValues
from xft_core.store.results.mix import CoefficientsFile, LayerCoefficients, MixMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss

logger = logging.getLogger(__name__)



def run(config: MixStage, workspace: Workspace) -> MixMetrics | None:
    """Choose the coefficients by config.merge.method, and measure them beside uniform ones.

    Of several processes the first does all but the learning alone; the others return None.
    """
    merge, directory = config.merge, find_model(config.model)
    metrics_log = MetricsLog(workspace.metrics_path)
    with MixtureReader(directory) as mixture:
        shared_expert = mixture.upcycle.shared_expert
        if merge.method == "shared_only" and not shared_expert:
            raise RecipeError(f"merge.method is shared_only, but {config.model!r} has no shared expert: choose another method")
        if mixture.upcycle.mode == "fusion" and merge.method != "ewa":
            raise RecipeError(
                f"merge.method is {merge.method}, but {config.model!r} is a fusion of experts, whose model is their mean: "
                "choose ewa")
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
        shared_expert_weight_mean=float(weight_LN[:, 0].mean()) if shared_expert else None)
