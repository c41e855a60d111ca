"""Dense model to Mixture-of-Experts: every expert starts as a copy of the FFN, only the router is new.

With routing weights that sum to one the upcycled model computes what the dense one does, whatever the router.
"""

import math
from pathlib import Path
from typing import Any

import torch

from xft_core.artifacts import Workspace
from xft_core.checkpoint import CheckpointReader, TensorPlan, read_config, write_checkpoint
from xft_core.config import UpcycleConfig
from xft_core.errors import CheckpointError
from xft_core.families import Family, family_of
from xft_core.idle_fields import unused_in_upcycle
from xft_core.locations import find_model
from xft_core.models import (
    MOE_MODEL_TYPE,
    check_layers,
    copy_beside_weights,
    save_moe_config,
    transformers_config,
)
from xft_core.stages import UpcycleStage


def run(config: UpcycleStage, workspace: Workspace) -> dict[str, Any]:
    """The upcycle stage. Metrics: parameters of the dense model, of the MoE, and active per token."""
    # The key leaves out what no code looks at, so it must not be in the artifact either.
    unused = {name: UpcycleConfig.model_fields[name].default for name in unused_in_upcycle(config.upcycle)}
    return upcycle(find_model(config.model), workspace.output, config.upcycle.model_copy(update=unused), config.seed)


def upcycle(source: Path, target: Path, config: UpcycleConfig, seed: int) -> dict[str, Any]:
    """Write the upcycled model of the dense directory ``source`` into ``target``, a few tensors in memory at a time.

    Raises CheckpointError for an unknown family, a model that is upcycled already, or a checkpoint that is not whole.
    """
    dense_config = read_config(source)
    if dense_config["model_type"] == MOE_MODEL_TYPE:
        raise CheckpointError(f"{str(source)!r} is upcycled already. Give the dense model.")
    family = family_of(dense_config["model_type"])
    num_layers = int(transformers_config(dense_config).num_hidden_layers)
    with CheckpointReader(source) as reader:
        check_layers(reader, family, num_layers)
        plans: list[TensorPlan] = []
        of_ffn = set()
        for layer in range(num_layers):
            mlp = family.mlp_name(layer)
            of_ffn |= {name for name in reader.names() if name.startswith(f"{mlp}.")}
            plans += _expert_plans(reader, family, mlp, config) if config.store_experts == "all" else []
            plans += _router_plans(reader, family, mlp, config, seed, layer)
        dense = [name for name in reader.names() if config.store_experts == "once" or name not in of_ffn]
        write_checkpoint(target, [reader.copy_plan(name) for name in dense] + plans)
        num_parameters = {name: math.prod(reader.shape(name)) for name in reader.names()}
    save_moe_config(target, dense_config, config)
    copy_beside_weights(source, target)
    total, ffn = sum(num_parameters.values()), sum(num_parameters[name] for name in of_ffn)
    router = sum(math.prod(plan.shape) for plan in plans if ".router." in plan.name)
    return {
        "parameters_dense": total,
        "parameters_total": total + (config.num_experts - 1) * ffn + router,
        "parameters_active": total + (config.num_experts_per_tok - 1) * ffn + router,
    }


def _expert_plans(reader: CheckpointReader, family: Family, mlp: str, config: UpcycleConfig) -> list[TensorPlan]:
    """The shared expert under the dense names, the routed ones stacked."""
    has_bias = f"{mlp}.{family.down}.bias" in reader
    sources = family.expert_sources(has_bias)
    plans = []
    if config.shared_expert:
        plans += [
            reader.copy_plan(f"{mlp}.{name}", f"{mlp}.shared_expert.{name}") for names in sources.values() for name in names]
    num_routed = config.num_experts - int(config.shared_expert)
    for stacked, names in sources.items():
        rows = sum(reader.shape(f"{mlp}.{name}")[0] for name in names)
        shape = [num_routed, rows, *reader.shape(f"{mlp}.{names[0]}")[1:]]

        def parts(names: tuple[str, ...] = names) -> list[torch.Tensor]:
            return [reader.get(f"{mlp}.{name}") for name in names] * num_routed

        plans.append(TensorPlan(f"{mlp}.experts.{stacked}", shape, reader.dtype(f"{mlp}.{names[0]}"), parts))
    return plans


def _router_plans(
    reader: CheckpointReader, family: Family, mlp: str, config: UpcycleConfig, seed: int, layer: int,
) -> list[TensorPlan]:
    """Router weights as torch initialises linear layers, from the seed and the layer alone; the noise starts at zero."""
    down = f"{mlp}.{family.down}.weight"
    hidden_size, dtype = reader.shape(down)[0], reader.dtype(down)
    num_routed = config.num_experts - int(config.shared_expert)

    def linear(offset: int, in_features: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + layer) * 2 + offset)
        bound = 1 / math.sqrt(in_features)
        return [torch.empty(num_routed, in_features).uniform_(-bound, bound, generator=generator).to(dtype)]

    plans = [
        TensorPlan(f"{mlp}.router.hidden.weight", [num_routed, hidden_size], dtype, lambda: linear(0, hidden_size)),
        TensorPlan(f"{mlp}.router.output.weight", [num_routed, num_routed], dtype, lambda: linear(1, num_routed))]
    if config.router_noise:
        plans.append(TensorPlan(
            f"{mlp}.router.noise.weight", [num_routed, hidden_size], dtype,
            lambda: [torch.zeros(num_routed, hidden_size, dtype=dtype)]))
    return plans
