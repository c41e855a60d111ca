"""The stock architectures that upcycled models can be trained in: which dense models fit, and the mixture's config.json.

    granite       granitemoeshared   y = S(x) + sum_{i in T} softmax_T(logits)_i E_i(x)
    qwen2_moe     qwen2_moe          y = sigmoid(g.x) S(x) + sum_{i in T} softmax_T(logits)_i E_i(x)      (norm_topk_prob)

``UpcycleConfig.down_scales`` says how S and E_i come from the shared and the routed experts.
"""

from typing import Any

from xft_core.errors import CheckpointError
from xft_core.families import FAMILIES_OF_ARCHITECTURES
from xft_core.models.config import NAMES_OF_CODE, transformers_config
from xft_core.recipe.sections import UpcycleConfig


def check_architecture(upcycle: UpcycleConfig, dense_config: dict[str, Any], name: str) -> None:
    """Raise CheckpointError with the reason if a dense model does not fit the architecture of ``upcycle.normalization``."""
    fitting = FAMILIES_OF_ARCHITECTURES[upcycle.normalization]
    if dense_config["model_type"] not in fitting:
        raise CheckpointError(
            f"upcycle.normalization is {upcycle.normalization}, an architecture for models of type {' and '.join(fitting)}; "
            f"{name!r} is of type {dense_config['model_type']}. Choose normalization xft.")
    config = transformers_config(dense_config)
    head_dim = config.hidden_size // config.num_attention_heads
    reasons = {
        "a head size other than hidden_size / num_attention_heads":
            (getattr(config, "head_dim", None) or head_dim) != head_dim,
        f"the activation {config.hidden_act}": config.hidden_act not in ("silu", "swish"),
        "biases in its FFNs (mlp_bias)": bool(getattr(config, "mlp_bias", False)),
        "biases in its attention (attention_bias)": bool(getattr(config, "attention_bias", False)),
        "a sliding window": _slides(config),
    }
    if found := [reason for reason, refused in reasons.items() if refused]:
        raise CheckpointError(
            f"{name!r} has {', '.join(found)}, which the architecture of upcycle.normalization {upcycle.normalization} does "
            "not support. Choose normalization xft.")


def architecture_config(upcycle: UpcycleConfig, dense_config: dict[str, Any]) -> dict[str, Any]:
    """Return the mixture's config.json in its architecture. Raises CheckpointError if the dense model does not fit."""
    check_architecture(upcycle, dense_config, "the model")
    config = transformers_config(dense_config)
    left_out = NAMES_OF_CODE | {"mlp_bias", "pretraining_tp", "head_dim", "sliding_window", "layer_types", "max_window_layers"}
    content = {name: value for name, value in dense_config.items() if name not in left_out}
    content |= {"rope_parameters": config.rope_parameters, "num_key_value_heads": config.num_key_value_heads,
                "num_experts_per_tok": upcycle.num_experts_per_tok - 1}
    if upcycle.normalization == "granite":
        return content | {
            "model_type": "granitemoeshared", "architectures": ["GraniteMoeSharedForCausalLM"],
            "num_local_experts": upcycle.num_routed, "shared_intermediate_size": config.intermediate_size,
            "attention_multiplier": (config.hidden_size // config.num_attention_heads) ** -0.5, "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0, "logits_scaling": 1.0, "rms_norm_eps": config.rms_norm_eps}
    return content | {
        "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "num_experts": upcycle.num_routed,
        "moe_intermediate_size": config.intermediate_size, "shared_expert_intermediate_size": config.intermediate_size,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}


def _slides(config: Any) -> bool:
    """Return whether attention may not cover an entire sequence."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return False
    return bool(window < config.max_position_embeddings)
