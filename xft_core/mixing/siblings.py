"""The dense families that stock Mixtures-of-Experts merge to, by model_type, and the reasons why others are not merged.

A merged FFN is the mean of the experts times the sum of their weights for a token, which is exact if all experts are equal. A
warning says if the configuration does not fix that sum.
"""

from dataclasses import dataclass, field
from typing import Any

from xft_core.errors import CheckpointError

OF_MIXTURES = frozenset({
    "num_local_experts", "num_experts", "num_experts_per_tok", "output_router_logits", "router_aux_loss_coef",
    "router_jitter_noise", "decoder_sparse_step", "moe_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "norm_topk_prob", "mlp_only_layers", "auto_map", "quantization_config"})
REFUSED = {
    "olmoe": ("OLMoE normalises before attention and FFN, and normalises queries and keys over all heads; no dense family of "
              "transformers does both (OLMo 2 normalises after them)"),
    "deepseek_v2": "its experts are small and its shared experts have another size: their mean is not an FFN of the model",
    "deepseek_v3": "its experts are small and its shared experts have another size: their mean is not an FFN of the model",
}


@dataclass(frozen=True)
class Sibling:
    """The dense sibling of a stock mixture. ``scale``: sum of the weights of all experts for a token."""

    dense_config: dict[str, Any]
    num_experts: int
    scale: float = 1.0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    dense: str
    architecture: str
    size: str = "intermediate_size"  # the field with the experts' FFN size
    normalises: bool = True  # the routed experts' weights sum to one, whatever norm_topk_prob says
    added: str | None = None  # the field with the size of a shared expert
    gated: bool = False  # the shared expert's output has a gate


SIBLINGS = {
    "mixtral": _Row("mistral", "MistralForCausalLM"),
    "qwen2_moe": _Row("qwen2", "Qwen2ForCausalLM", "moe_intermediate_size", False, "shared_expert_intermediate_size", True),
    "qwen3_moe": _Row("qwen3", "Qwen3ForCausalLM", "moe_intermediate_size", False),
    "granitemoe": _Row("granite", "GraniteForCausalLM"),
    "granitemoeshared": _Row("granite", "GraniteForCausalLM", added="shared_intermediate_size"),
}


def sibling_of(config: dict[str, Any]) -> Sibling:
    """The dense sibling of a stock mixture's config.json. Raises CheckpointError with the reason if there is none."""
    model_type = config["model_type"]
    if model_type in REFUSED:
        raise CheckpointError(f"A model of type {model_type!r} cannot be merged: {REFUSED[model_type]}.")
    if model_type not in SIBLINGS:
        raise CheckpointError(
            f"No dense family is known for models of type {model_type!r}. Known: {', '.join(SIBLINGS)}, and upcycled models. "
            "For another type, write a plan that contains the dense model's config.json, and give it with --plan.")
    row = SIBLINGS[model_type]
    size = int(config[row.size])
    _check_form(config, row, size)
    dense = {name: value for name, value in config.items() if name not in OF_MIXTURES}
    dense |= {"model_type": row.dense, "architectures": [row.architecture], "intermediate_size": size}
    scale, warnings = 1.0, []
    if row.added and config.get(row.added):
        if row.gated:
            warnings.append(
                "The shared expert's output has its own gate, so the weights of all experts have no fixed sum. "
                "The merged FFNs have factor 1; change scale in the plan to try another.")
        else:
            scale = 2.0  # y = shared(x) + sum_i w_i E_i(x), sum_i w_i = 1
    if not row.normalises and not config.get("norm_topk_prob"):
        warnings.append(
            "norm_topk_prob is false: the weights of a token's experts sum to less than one, by an amount that depends on the "
            "token. The merged FFNs have factor 1; change scale in the plan to try another.")
    experts = config.get("num_local_experts") or config.get("num_experts")
    if not experts:
        raise CheckpointError("config.json does not give the number of experts (num_local_experts or num_experts).")
    return Sibling(dense, int(experts), scale, warnings)


def _check_form(config: dict[str, Any], row: _Row, size: int) -> None:
    """Raise CheckpointError if layers are not alike, or if the shared expert has another size than the others."""
    shared = config.get(row.added) if row.added else None
    if shared and shared != size:
        raise CheckpointError(
            f"The shared expert has {shared} neurons, the other experts have {size}: they cannot be averaged. (config.json: "
            f"{row.added} and {row.size}.)")
    sparse = int(config.get("decoder_sparse_step") or 1)
    if config.get("mlp_only_layers") or sparse > 1:
        raise CheckpointError(
            f"Some layers are dense with {config.get('intermediate_size')} neurons, the experts of others have {size}: a plan "
            "needs layers that are all alike.")
