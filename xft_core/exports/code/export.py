"""Write an upcycled model as a directory that ``AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`` runs. The
routing is in a modelling file next to the weights (modeling_xft.py).

The Transformers back ends of vLLM and SGLang run such models if ``experts`` holds only 3-D parameters and computes a gated FFN
with SiLU; families of another form are refused. The code is written here, never loaded.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from xft_core.errors import CheckpointError
from xft_core.families import Family
from xft_core.mixing.mixture import ExpertTensor, MixtureReader
from xft_core.models.config import NAMES_OF_CODE, transformers_config
from xft_core.models.loading import copy_beside_weights
from xft_core.models.safetensors_io import TensorPlan, dtype_that_holds, write_checkpoint
from xft_core.models.tokenizer import keep_tokens
from xft_core.models.upcycled import HOLDERS
from xft_core.recipe.sections import UpcycleConfig
from xft_core.recipe.sections.upcycle import ASSIGNED

MODELLING = "modeling_xft"
_TEMPLATE = Path(__file__).with_name(f"{MODELLING}.py")
_OF_ROUTER = ("hidden.weight", "output.weight", "gate.weight", "gate.bias")


def export_code(source: Path, target: Path) -> None:
    """Write the upcycled model ``source`` into the empty directory ``target``, with its modelling file.

    Raises CheckpointError for a family that does not fit, and for a routing that the modelling file does not implement.
    """
    with MixtureReader(source) as mixture:
        upcycle, family = mixture.upcycle, mixture.family
        config = transformers_config(mixture.dense_config)
        _check_routing(upcycle)
        _check_family(family, config, mixture)
        reader, layers = mixture.reader, range(mixture.num_layers)
        of_ffns = tuple(prefix for layer in layers for prefix in (*family.ffn_prefixes(layer), f"{family.block_name(layer)}."))
        plans = [reader.copy_plan(name) for name in reader.names() if not name.startswith(of_ffns)]
        for layer in layers:
            plans += _block_plans(mixture, layer)
        write_checkpoint(target, sorted(plans, key=lambda plan: plan.name))
        left_out = NAMES_OF_CODE | {"torch_dtype"}
        content = {name: value for name, value in mixture.dense_config.items() if name not in left_out}
        content |= {
            "architectures": ["XftForCausalLM"], "model_type": "xft_moe_exported", "dtype": dtype_that_holds(plans),
            "num_experts": upcycle.num_routed, "num_experts_per_tok": _routed_per_tok(upcycle), "xft": _routing(mixture),
            "auto_map": {"AutoConfig": f"{MODELLING}.XftConfig", "AutoModel": f"{MODELLING}.XftModel",
                         "AutoModelForCausalLM": f"{MODELLING}.XftForCausalLM"}}
        (target / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    (target / f"{MODELLING}.py").write_text(_code_for(config), encoding="utf-8")
    copy_beside_weights(source, target)
    keep_tokens(source, target)


def _check_routing(upcycle: UpcycleConfig) -> None:
    reasons = {
        "mode": (upcycle.mode == "fusion", "such a model is the mean of its experts: merge it (merge.method ewa)"),
        "router": (upcycle.router == "hashed", "it routes by token ids, which an FFN in transformers does not receive"),
        "groups": (upcycle.groups is not None, "groups are chosen by the entire instruction, which an FFN does not receive"),
    }
    for name, (refused, reason) in reasons.items():
        if refused:
            raise CheckpointError(
                f"A Mixture-of-Experts with upcycle.{name} {getattr(upcycle, name)} cannot be exported: {reason}. The merged "
                "model can be.")


def _check_family(family: Family, config: Any, mixture: MixtureReader) -> None:
    has_bias = any(tensor.name.endswith(".bias") for tensor in mixture.expert_tensors(0))
    activation = getattr(config, "hidden_act", None)
    classes = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_MAPPING
    reasons = {
        "its experts have biases, but serving kernels support only packed 3-D weights": has_bias,
        "its FFN has no gate": not family.gated,
        "its linear layers are transposed": family.transposed,
        f"its activation is {activation}, but serving kernels compute SiLU": activation not in ("silu", "swish"),
        f"its FFNs are not model.layers.*.mlp but {family.layers}.*.{family.mlp}":
            (family.layers, family.mlp, family.adds_residual) != ("model.layers", "mlp", False),
        "transformers has no plain model class for it": not classes,
    }
    found = [reason for reason, refused in reasons.items() if refused]
    if found:
        raise CheckpointError(
            f"A Mixture-of-Experts of family {config.model_type} cannot be exported: {'; '.join(found)}. The merged model can "
            "be.")


def _block_plans(mixture: MixtureReader, layer: int) -> list[TensorPlan]:
    reader, family, upcycle = mixture.reader, mixture.family, mixture.upcycle
    mlp, block = family.mlp_name(layer), family.block_name(layer)
    tensors = {tensor.name.removeprefix(f"{mlp}."): tensor for tensor in mixture.expert_tensors(layer)}
    plans = []
    if upcycle.shared_expert:
        for name in tensors:
            stored = next(found for found in (*(f"{block}.{holder}{name}" for holder in HOLDERS), f"{mlp}.{name}")
                          if found in reader)
            plans.append(reader.copy_plan(stored, f"{block}.shared_expert.{name}"))
    for stacked, names in family.expert_sources(has_bias=False).items():
        parts = [tensors[name] for name in names]
        rows = sum(part.shape[0] for part in parts)
        plans.append(TensorPlan(
            f"{block}.experts.{stacked}", [upcycle.num_routed, rows, *parts[0].shape[1:]], parts[0].dtype,
            partial(_experts, parts, upcycle)))
    plans += [reader.copy_plan(name) for ending in _OF_ROUTER if (name := f"{block}.router.{ending}") in reader]
    return plans


def _experts(parts: list[ExpertTensor], upcycle: UpcycleConfig) -> Iterator[torch.Tensor]:
    first = int(upcycle.shared_expert)
    for expert in range(first, upcycle.num_experts):
        for part in parts:
            yield part.of_expert(expert).to(part.dtype)


def _routed_per_tok(upcycle: UpcycleConfig) -> int:
    """Return K. For routers that use all experts equally outside training, this is the number of all routed experts."""
    return upcycle.num_routed if upcycle.router in ASSIGNED else upcycle.num_experts_per_tok - int(upcycle.shared_expert)


def _routing(mixture: MixtureReader) -> dict[str, Any]:
    """Return the routing settings for the modelling file. p and the balance bias are numbers here, not tensors: a program that
    loads the model in 16 bits would round tensors."""
    upcycle, reader, blocks = mixture.upcycle, mixture.reader, [
        mixture.family.block_name(layer) for layer in range(mixture.num_layers)]
    top_p = bias = None
    if upcycle.routing == "top_p":
        top_p = [float(reader.get(f"{block}.router.top_p")[0]) for block in blocks]
    if f"{blocks[0]}.router.balance_bias" in reader:
        bias = [reader.get(f"{block}.router.balance_bias").tolist() for block in blocks]
    return {
        "normalization": upcycle.normalization, "temperature": upcycle.routing_temperature,
        "shared_expert": upcycle.shared_expert, "has_logits": upcycle.router not in ASSIGNED,
        "has_gate": upcycle.shared_gate == "token" and upcycle.shared_expert, "top_p": top_p, "balance_bias": bias}


def _code_for(config: Any) -> str:
    """Return the modelling file for a family, with its configuration and model classes in place of Llama's."""
    names = {"LlamaConfig": type(config).__name__, "LlamaForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__,
             "LlamaModel": MODEL_MAPPING[type(config)].__name__}
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, own in names.items():
        text = text.replace(f"import {name} as", f"import {own} as")
    return text
