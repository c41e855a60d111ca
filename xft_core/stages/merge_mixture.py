"""``python -m xft_core merge-mixture MODEL OUT``: merge a stock Mixture-of-Experts into a dense model that transformers loads.

Every FFN tensor is the mean of the experts', W = lambda W_shared + (1 - lambda) mean_i W_i, as the plan says (mixing/plan.py).
The mean is only meaningful for experts that come from one model. For other experts, the stage logs a warning.
"""

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from xft_core.errors import CheckpointError, first_line
from xft_core.exports.stock import TRAINED_BY
from xft_core.families import FAMILIES
from xft_core.files.locate import find_file, find_model
from xft_core.mixing.plan import ExpertGroup, MixturePlan, auto_plan, check_plan, expand, made_shape, of_expert, sources
from xft_core.mixing.siblings import Sibling, sibling_of
from xft_core.models.config import MOE_MODEL_TYPE, NAMES_OF_CODE, dense_config_of, save_dense_config, upcycle_config_of
from xft_core.models.loading import copy_beside_weights
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, read_config, write_checkpoint
from xft_core.recipe.load import read_yaml
from xft_core.stages.configs.merge_mixture import MergeMixtureStage
from xft_core.store.results.merge_mixture import MergeMixtureMetrics
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

SAME_ANCESTOR = 0.9  # mean cosine of experts


def run(config: MergeMixtureStage, workspace: Workspace) -> MergeMixtureMetrics:
    """Write the dense model and, next to it, the plan that it was merged by."""
    source = find_model(config.model)
    with CheckpointReader(source) as reader:
        plan = chosen_plan(reader, find_file(str(config.plan)) if config.plan else None)
        for warning in plan.warnings:
            logger.warning("merge-mixture: %s", warning)
        groups = list(expand(plan, plan.groups))
        cosines = [cosine for group in groups if (cosine := mean_cosine(plan, group, reader)) is not None]
        mean = math.fsum(cosines) / len(cosines) if cosines else None
        if mean is not None and mean < SAME_ANCESTOR:
            logger.warning(
                "merge-mixture: the experts have a mean cosine of %.2f. Experts that come from one model are above %.1f; the "
                "mean of other experts is hardly usable. Distill them into a dense model instead.", mean, SAME_ANCESTOR)
        plans = [
            TensorPlan(group.target, made_shape(plan, group, reader), reader.dtype(sources(plan, group)[-1]),
                       partial(_mean, plan, group, reader, config.shared_expert_weight))
            for group in groups]
        taken = {name for group in groups for name in sources(plan, group)}
        left_out = {name.replace("{layer}", str(layer)) for name in plan.left_out for layer in range(plan.num_layers)}
        plans += [reader.copy_plan(name) for name in reader.names() if name not in taken | left_out]
        plans.sort(key=lambda item: item.name)
        write_checkpoint(workspace.output, plans)
        copy_beside_weights(source, workspace.output)
    save_dense_config(workspace.output, plan.dense_config, plans)
    plan.write(workspace.output)
    return MergeMixtureMetrics(
        parameters=sum(math.prod(item.shape) for item in plans),
        num_experts=plan.num_experts + int(any(group.shared for group in plan.groups)), expert_cosine_mean=mean,
        expert_cosine_min=min(cosines, default=None))


def chosen_plan(reader: CheckpointReader, file: Path | None) -> MixturePlan:
    """Return the plan in ``file``, or the plan derived from the checkpoint. Raises CheckpointError if it does not fit."""
    if file:
        try:
            is_json = file.suffix == ".json"  # a YAML parser reads some JSON numbers as text
            plan = MixturePlan.parse(file.read_bytes()) if is_json else MixturePlan.model_validate(read_yaml(file))
        except ValueError as error:
            raise CheckpointError(f"{str(file)!r} is not a plan: {first_line(error)}.") from None
        check_plan(plan, reader, dense_tensors(plan.dense_config, reader))
        return plan
    config = read_config(reader.directory)
    if TRAINED_BY in config or (config["model_type"] == MOE_MODEL_TYPE and upcycle_config_of(reader.directory).is_stock):
        raise CheckpointError(
            f"{str(reader.directory)!r} was upcycled in a stock architecture: its down projections are scaled. Merge the "
            "upcycled model itself, by a recipe or with the stages mix and merge.")
    if config["model_type"] == MOE_MODEL_TYPE:
        upcycle = upcycle_config_of(reader.directory)
        sibling = Sibling(dense_config_of(reader), upcycle.num_experts - int(upcycle.shared_expert))
    else:
        sibling = sibling_of(config)
    targets = dense_tensors(sibling.dense_config, reader)
    return auto_plan(reader, sibling.dense_config, targets, sibling.num_experts, sibling.scale, sibling.warnings)


def dense_tensors(dense_config: dict[str, object], reader: CheckpointReader) -> dict[str, list[int]]:
    """Return the names, as in files, and shapes of the dense model's tensors; a tied head only if the checkpoint has it.

    Raises CheckpointError for a configuration that no model can be created from.
    """
    try:
        config = AutoConfig.for_model(**{name: value for name, value in dense_config.items() if name not in NAMES_OF_CODE})
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config)
    except MemoryError:
        raise
    except Exception as error:  # each family checks, or does not check, in its own way
        raise CheckpointError(f"The dense model's configuration is not usable: {first_line(error)}") from None
    family = FAMILIES.get(str(dense_config["model_type"]))
    found = {family.stored_name(name) if family else name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        tied = {name for name in found if name.startswith(("lm_head.", "embed_out.")) and name not in reader}
        found = {name: shape for name, shape in found.items() if name not in tied}
    return found


def mean_cosine(plan: MixturePlan, group: ExpertGroup, reader: CheckpointReader) -> float | None:
    """Return the mean cosine over all pairs of experts' matrices: (|sum_i u_i|^2 - N) / (N (N - 1)) for unit vectors u_i. None
    for biases, and for fewer than two nonzero experts."""
    if len(made_shape(plan, group, reader)) < 2:
        return None
    total, count = None, 0
    for expert in of_expert(plan, group, reader):
        wide = expert.float()
        norm = float(wide.norm())
        if norm > 0:
            total = wide / norm if total is None else total.add_(wide / norm)
            count += 1
    if total is None or count < 2:
        return None
    return float((total.double().square().sum() - count) / (count * (count - 1)))


def _mean(plan: MixturePlan, group: ExpertGroup, reader: CheckpointReader, shared_weight: float) -> Iterator[torch.Tensor]:
    """Yield the mean of the experts, summed in a dtype twice as wide and rounded once."""
    experts = of_expert(plan, group, reader)
    first = next(experts)
    others = plan.num_experts - (0 if group.shared else 1)
    weight = shared_weight if group.shared else 1 / plan.num_experts
    wide = torch.float32 if first.dtype.itemsize < 4 else torch.float64
    total = first.to(wide) * weight
    for expert in experts:
        total += expert.to(wide) * ((1 - weight) / others)
    yield (total * group.scale).to(first.dtype).contiguous()
