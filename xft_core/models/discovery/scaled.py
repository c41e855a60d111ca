"""A tiny random model of an architecture, made from the config of a large one."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

FFN, HEADS, HEAD_SIZE, LAYERS, VOCABULARY, POSITIONS = 96, 4, 16, 2, 256, 256
SMALL = 2_000_000  # parameters of a model that is used unchanged
MOST = 200_000_000  # parameters of one that keeps its widths: 1.6 GB in fp64
# Fields that count something else, though their number may equal a width.
NOT_WIDTHS = ("position", "vocab", "token", "window", "ctx", "context", "layer", "length", "base", "theta")


def tiny_models(
    config: PreTrainedConfig, parameters: int, hidden_size: int, ffn_size: int,
) -> Iterator[PreTrainedModel | Exception]:
    """Models of the architecture on the CPU, in evaluation mode, with large random weights: from the config itself if it is
    small, then scaled down, first as far as possible. All are in fp64, except the last but one in fp32. An exception takes the
    place of a model that cannot be built."""
    fields = config.to_dict()
    small = _scaled(config, fields, hidden_size, ffn_size, HEAD_SIZE)
    # Rotary settings may depend on the head size in their own way.
    plain_positions = {name: value for name, value in small.items() if not name.startswith("rope_")}
    heads = int(getattr(config, "num_attention_heads", None) or HEADS)
    head_size = int(getattr(config, "head_dim", None) or hidden_size // heads)
    same_heads = _scaled(config, fields, hidden_size, ffn_size, head_size)
    candidates = [(fields, torch.float64)] if parameters <= SMALL else []
    candidates += [(content, torch.float64) for content in (small, plain_positions, same_heads)]
    candidates += [(small, torch.float32), (_few_layers(config, fields), torch.float64)]
    for candidate, dtype in candidates:
        try:
            made = AutoConfig.for_model(config.model_type, **{
                name: value for name, value in candidate.items() if name != "model_type"})
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(made).parameters())
            if size <= MOST:
                yield _lively(AutoModelForCausalLM.from_config(made, dtype=dtype))
        except MemoryError:
            raise
        except Exception as error:  # every architecture fails in its own way
            yield error


def _lively(model: PreTrainedModel) -> PreTrainedModel:
    """Move biases and norms away from their neutral start, and make weights larger than the usual 0.02."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def _few_layers(config: PreTrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """The config with two layers; lists with an entry for each layer are cut."""
    names, layers = _names(config), int(config.num_hidden_layers)
    cut = {
        name: value[:LAYERS] if isinstance(value, list) and len(value) == layers else value for name, value in fields.items()}
    return cut | {names("num_hidden_layers"): min(LAYERS, layers)}


def _scaled(
    config: PreTrainedConfig, fields: dict[str, Any], hidden_size: int, ffn_size: int, head_size: int,
) -> dict[str, Any]:
    """The config with two layers, few small heads, a small FFN and vocabulary. Other fields stay."""
    names = _names(config)
    small = _few_layers(config, fields)
    for name, value in small.items():
        if isinstance(value, int) and not isinstance(value, bool) and not any(word in name for word in NOT_WIDTHS):
            small[name] = {hidden_size: HEADS * head_size, ffn_size: FFN}.get(value, value)
        if name == "rotary_dim" and isinstance(value, int):  # of each head
            small[name] = min(value, head_size)
        if name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            small[name] = 0
    heads = int(getattr(config, "num_attention_heads", HEADS))
    for name in ("num_key_value_heads", "num_kv_heads"):
        value = small.get(names(name))
        if isinstance(value, int):
            small[names(name)] = HEADS if value == heads else 1 if value == 1 else HEADS // 2
    small |= {names("num_attention_heads"): HEADS, names("vocab_size"): VOCABULARY, names("hidden_size"): HEADS * head_size}
    if isinstance(small.get("head_dim"), int):
        small["head_dim"] = head_size
    if isinstance(small.get(names("max_position_embeddings")), int):
        small[names("max_position_embeddings")] = POSITIONS
    return small


def _names(config: PreTrainedConfig) -> Any:
    """A standard field's name in this family's config."""
    attribute_map = getattr(config, "attribute_map", {})
    return lambda name: attribute_map.get(name, name)


def count(model: nn.Module) -> int:
    """Number of parameters of a model, which may be without memory."""
    return sum(parameter.numel() for parameter in model.parameters())
