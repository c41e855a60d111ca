"""The upcycle stage: turn a dense model into a Mixture-of-Experts.

Every expert starts as a copy of the FFN, or, with low-rank experts, as the FFN itself with a change of zero. Only the router is
new. With routing weights that sum to one, the upcycled model computes the same as the dense model, whatever the router.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xft_core.errors import CheckpointError
from xft_core.exports.architectures import check_architecture
from xft_core.families import Family
from xft_core.files.locate import find_model
from xft_core.models.classes import special_picture_tokens
from xft_core.models.config import dense_config_of, is_moe, num_layers_of, save_moe_config, transformers_config
from xft_core.models.discovery import family_of
from xft_core.models.loading import copy_beside_weights, load_model
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, write_checkpoint
from xft_core.models.tensor_names import save_tensor_names
from xft_core.models.upcycled import check_tensors
from xft_core.moe.low_rank import Parts
from xft_core.moe.prompts import GeneratedPrompts, tell_prompts
from xft_core.moe.router import first_gate_bias, first_top_p
from xft_core.recipe.inactive_fields import unused_in_upcycle
from xft_core.recipe.sections import UpcycleConfig
from xft_core.recipe.sections.upcycle import ASSIGNED
from xft_core.stages.configs import UpcycleStage
from xft_core.stages.labelled_rows import labelled_rows, loaded
from xft_core.stages.router_start import ridge_weights
from xft_core.stages.router_training import train_routers
from xft_core.store.results.upcycle import UpcycleMetrics
from xft_core.store.workspace import Workspace

# For an upcycled model up to this size, the logits are compared too: two loads and two short passes, under a second in total.
# For larger models this would cost more than the copying. Names, shapes and tying are checked for any size.
MOST_PARAMETERS_TO_RUN = 20_000_000
TOKENS_TO_RUN = 16
LARGEST_ROUNDING = 1e-3  # of the largest logit; deep fp32 models stay below 1e-4, a wrong head or expert is far above


def run(config: UpcycleStage, workspace: Workspace) -> UpcycleMetrics:
    """Run the stage."""
    # The key leaves out fields that no code reads, so they must not be in the artifact either.
    names = [*unused_in_upcycle(config.upcycle), "dense_share"]
    unused = {name: UpcycleConfig.model_fields[name].default for name in names}
    section = config.upcycle.model_copy(update=unused)
    experts = [find_model(name) for name in config.experts.values()]
    source = find_model(config.model)
    if section.router_start == "random":
        return upcycle(source, workspace.output, section, config.seed, experts)
    labelled = labelled_rows(config, experts)
    weights = ridge_weights(loaded(source, config.precision, labelled.pieces), labelled)
    made = upcycle(source, workspace.output, section, config.seed, experts, weights)
    counts = labelled.rows_of_experts
    made = made.model_copy(update={"router_start_rows": sum(counts), "router_start_rows_min": min(counts)})
    if section.router_start == "ridge":
        return made
    trained = train_routers(loaded(workspace.output, config.precision, labelled.pieces), labelled, config.seed)
    upcycle(source, workspace.output, section, config.seed, experts, trained.weights)  # once more, in the same place
    return made.model_copy(update={
        "router_start_loss_first": trained.loss_first, "router_start_loss_last": trained.loss_last,
        "router_start_accuracy": trained.accuracy})


def upcycle(
    source: Path, target: Path, config: UpcycleConfig, seed: int, experts: Sequence[Path] = (),
    router_weights: Sequence[torch.Tensor] = (),
) -> UpcycleMetrics:
    """Write the upcycled model of the dense directory ``source`` into ``target``, with a few tensors in memory at a time.

    ``experts``: dense models that supply the routed experts' FFNs, one for each; if empty, all experts are the source's FFN. If
    all these models equal the source, the result computes the same function, whatever the router. ``router_weights``: W_1 of
    each layer's router (R,D) if it does not start at random, see stages/router_start.py and router_training.py.

    The output is checked: its tensors always, its logits for a small model. Raises CheckpointError for an unknown family, a
    model that is already upcycled, an incomplete checkpoint, or experts of another form or number.
    """
    if is_moe(source):
        raise CheckpointError(f"{str(source)!r} is already upcycled. Give the dense model.")
    if experts and len(experts) != config.num_routed:
        raise CheckpointError(f"{len(experts)} models are given for {config.num_routed} routed experts: give one for each.")
    with ExitStack() as stack:
        reader = stack.enter_context(CheckpointReader(source))
        dense_config = dense_config_of(reader)
        model_config = transformers_config(dense_config)
        family, num_layers = family_of(model_config), num_layers_of(model_config)
        others = [_expert_reader(stack, directory, reader, dense_config) for directory in experts]
        if config.is_stock:
            check_architecture(config, dense_config, str(source))
        if experts or config.is_stock:
            config = config.model_copy(update={"store_experts": "all"})
        plans: list[TensorPlan] = []
        of_ffn = set()
        for layer in range(num_layers):
            of_ffn |= {name for name in reader.names() if name.startswith(family.ffn_prefixes(layer))}
            if config.expert_rank is not None:
                plans += _low_rank_plans(reader, family, layer, config, seed)
            elif config.store_experts == "all":
                plans += _expert_plans(reader, others, family, layer, config)
            started = router_weights[layer] if router_weights else None
            plans += _router_plans(reader, family, layer, config, seed, started) if config.mode == "routed" else []
        keeps_ffn = config.store_experts == "once" or config.expert_rank is not None
        dense = [name for name in reader.names() if keeps_ffn or name not in of_ffn]
        write_checkpoint(target, [reader.copy_plan(name) for name in dense] + plans)
        if family.reads_pictures:
            save_tensor_names(reader, target)
        num_parameters = {name: math.prod(reader.shape(name)) for name in reader.names()}
    save_moe_config(target, dense_config, config)
    copy_beside_weights(source, target)
    with CheckpointReader(target) as written:
        check_tensors(written, dense_config, config)
    total, ffn = sum(num_parameters.values()), sum(num_parameters[name] for name in of_ffn)
    router = sum(math.prod(plan.shape) for plan in plans if ".router." in plan.name)
    if config.expert_rank is None:
        more, active = (config.num_experts - 1) * ffn, round((config.active_experts(training=True) - 1) * ffn)
    else:
        more, active = _low_rank_parameters(plans, config)
    parameters_total = total + more + router
    if parameters_total <= MOST_PARAMETERS_TO_RUN and config.sums_to_one and not experts:
        _check_identity(source, target)
    return UpcycleMetrics(
        parameters_dense=total, parameters_total=parameters_total, parameters_active=total + active + router)


@torch.no_grad()
def _check_identity(source: Path, target: Path) -> None:
    """Raise CheckpointError unless the upcycled and the dense model give the same logits for a few tokens, up to rounding."""
    dense, upcycled = (load_model(directory, torch.float32) for directory in (source, target))
    tell_prompts(upcycled, GeneratedPrompts(torch.ones(1, TOKENS_TO_RUN)))
    generator = torch.Generator().manual_seed(0)
    pictures = special_picture_tokens(dense.config)  # not compared: that part of the model is copied unchanged
    text = torch.tensor([token for token in range(dense.get_input_embeddings().num_embeddings) if token not in pictures])
    input_ids = text[torch.randint(len(text), (1, TOKENS_TO_RUN), generator=generator)]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small work is slower with several, on a busy machine many times
    try:
        expected, found = (model(input_ids=input_ids, use_cache=False).logits for model in (dense, upcycled))
    finally:
        torch.set_num_threads(num_threads)
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if difference > LARGEST_ROUNDING * scale:  # false if the dense model gives NaN: the training reports that
        raise CheckpointError(
            f"The upcycled model does not compute the same as {str(source)!r}: their logits, up to {scale:.3g}, differ by "
            f"{difference:.3g}. Nothing was kept. Please report this, with the config.json and the names of the tensors.")


def _expert_reader(
    stack: ExitStack, directory: Path, model: CheckpointReader, dense_config: dict[str, Any],
) -> CheckpointReader:
    """Open a dense model that an expert comes from. Raises CheckpointError unless its tensors have the form of ``model``'s."""
    if is_moe(directory):
        raise CheckpointError(f"{str(directory)!r} is already upcycled. Experts come from dense models.")
    reader = stack.enter_context(CheckpointReader(directory))
    same = dense_config_of(reader)["model_type"] == dense_config["model_type"] and all(
        name in reader and reader.shape(name) == model.shape(name) and reader.dtype(name) == model.dtype(name)
        for name in model.names())
    if not same:
        raise CheckpointError(f"{str(directory)!r} has another form than {str(model.directory)!r}: their tensors differ.")
    return reader


def _expert_plans(
    reader: CheckpointReader, others: list[CheckpointReader], family: Family, layer: int, config: UpcycleConfig,
) -> list[TensorPlan]:
    """Plan the shared expert under the dense names and the routed experts stacked: copies, or the FFNs of ``others``."""
    mlp, block = family.mlp_name(layer), family.block_name(layer)
    has_bias = f"{mlp}.{family.down}.bias" in reader
    sources = family.expert_sources(has_bias)
    plans = []
    if config.shared_expert:
        plans += [
            _scaled(reader.copy_plan(f"{mlp}.{name}", f"{block}.shared_expert.{name}"), config.down_scales[0])
            if name == f"{family.down}.weight" else reader.copy_plan(f"{mlp}.{name}", f"{block}.shared_expert.{name}")
            for names in sources.values() for name in names]
    num_routed = config.num_routed
    for stacked, names in sources.items():
        rows = sum(reader.shape(f"{mlp}.{name}")[0] for name in names)
        shape = [num_routed, rows, *reader.shape(f"{mlp}.{names[0]}")[1:]]

        def parts(names: tuple[str, ...] = names) -> list[torch.Tensor]:
            return [item.get(f"{mlp}.{name}") for item in others or [reader] * num_routed for name in names]

        plan = TensorPlan(f"{block}.experts.{stacked}", shape, reader.dtype(f"{mlp}.{names[0]}"), parts)
        plans.append(_scaled(plan, config.down_scales[1]) if stacked == "down_proj" else plan)
    return plans


def _scaled(plan: TensorPlan, scale: float) -> TensorPlan:
    """Scale a tensor. A 16-bit tensor becomes 32-bit if the product would be rounded (0.75 is not a power of two)."""
    if scale == 1:
        return plan
    dtype = plan.dtype if math.frexp(scale)[0] == 0.5 else torch.promote_types(plan.dtype, torch.float32)
    return replace(plan, dtype=dtype, parts=lambda: (part.to(dtype) * scale for part in plan.parts()))


def _low_rank_plans(
    reader: CheckpointReader, family: Family, layer: int, config: UpcycleConfig, seed: int,
) -> list[TensorPlan]:
    """Plan low-rank experts: A as torch initialises linear layers, from seed and name alone; B and bias changes are zero."""
    if family.transposed:
        raise CheckpointError(
            f"{str(reader.directory)!r} has an FFN of Conv1D layers, which low-rank experts do not support. Leave "
            "upcycle.expert_rank empty.")
    mlp, block, plans = family.mlp_name(layer), family.block_name(layer), []
    for name in (*family.up, family.down):
        weight = f"{mlp}.{name}.weight"
        (rows, columns), dtype = reader.shape(weight), reader.dtype(weight)
        for level in Parts(config).levels:
            stored = f"{block}.experts.{level.prefix}{name}"
            shapes = {"a": [level.count, level.rank, columns], "b": [level.count, rows, level.rank]}
            if f"{mlp}.{name}.bias" in reader:
                shapes["bias"] = [level.count, rows]
            for kind, shape in shapes.items():
                make = partial(_uniform, f"{seed}/{stored}", columns) if kind == "a" else torch.zeros
                plans.append(TensorPlan(f"{stored}_{kind}", shape, dtype, partial(_made, make, shape, dtype)))
    return plans


def _uniform(seed: str, in_features: int, shape: list[int]) -> torch.Tensor:
    digest = hashlib.sha256(seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bound = 1 / math.sqrt(in_features)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _made(make: Callable[[list[int]], torch.Tensor], shape: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    return [make(shape).to(dtype)]


def _low_rank_parameters(plans: list[TensorPlan], config: UpcycleConfig) -> tuple[int, int]:
    """Return the parameters that all experts, and the experts of one token, add to the weights that they share."""
    found = {level.prefix: sum(math.prod(plan.shape) for plan in plans if f".experts.{level.prefix}" in plan.name)
             for level in Parts(config).levels}
    groups, total = found.get("group_", 0), found[""]  # every name begins with "", those of groups too
    routed = config.num_experts_per_tok - int(config.shared_expert)
    active = (total - groups) // config.num_routed * routed
    if config.groups is not None:
        active = config.groups_per_tok * (active + groups // config.groups)
    return total, active


def _router_plans(
    reader: CheckpointReader, family: Family, layer: int, config: UpcycleConfig, seed: int, started_RD: torch.Tensor | None,
) -> list[TensorPlan]:
    """Plan the router weights: as torch initialises linear layers, from the seed and the layer alone, or W_1 as given and
    W_2 = 1. The noise starts at zero, the gate at m_0 for every token. A router without logits has no such weights."""
    down, block = f"{family.mlp_name(layer)}.{family.down}.weight", family.block_name(layer)
    hidden_size, dtype = reader.shape(down)[int(family.transposed)], reader.dtype(down)
    num_routed = config.num_routed

    def linear(offset: int, in_features: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + layer) * 2 + offset)
        bound = 1 / math.sqrt(in_features)
        return [torch.empty(num_routed, in_features).uniform_(-bound, bound, generator=generator).to(dtype)]

    def planned(name: str, tensor: torch.Tensor) -> TensorPlan:
        return TensorPlan(f"{block}.router.{name}", list(tensor.shape), tensor.dtype, lambda: [tensor])

    plans = []
    if config.router not in ASSIGNED:
        if started_RD is not None:
            plans.append(planned("hidden.weight", started_RD.to(dtype)))
            plans += [] if config.is_stock else [planned("output.weight", torch.eye(num_routed, dtype=dtype))]
        else:
            plans.append(
                TensorPlan(f"{block}.router.hidden.weight", [num_routed, hidden_size], dtype, lambda: linear(0, hidden_size)))
        if not config.is_stock and started_RD is None:
            plans.append(
                TensorPlan(f"{block}.router.output.weight", [num_routed, num_routed], dtype, lambda: linear(1, num_routed)))
        if config.router_noise:
            plans.append(planned("noise.weight", torch.zeros(num_routed, hidden_size, dtype=dtype)))
    if config.normalization == "qwen2_moe":
        plans.append(planned("gate.weight", torch.zeros(1, hidden_size, dtype=dtype)))
    if config.shared_gate == "token" and config.shared_expert:
        plans.append(planned("gate.weight", torch.zeros(1, hidden_size, dtype=dtype)))
        plans.append(planned("gate.bias", torch.full([1], first_gate_bias(config), dtype=dtype)))
    if config.routing == "top_p":
        plans.append(planned("top_p", torch.tensor([first_top_p(config), 0.0], dtype=torch.float64)))
    if config.groups is not None:
        shape, name = [config.groups, hidden_size], f"{block}.router.group.weight"
        make = partial(_uniform, f"{seed}/{name}", hidden_size)
        plans.append(TensorPlan(name, shape, dtype, partial(_made, make, shape, dtype)))
    return plans
