"""Checkpoints of the XFT reference code and the outputs of its model, written from its equations, to test the import.

Shape suffixes: B batch, S sequence, H heads, D hidden size, T tokens, R routed experts.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.factories import VOCABULARY, tokenizer

CONFIG: dict[str, Any] = {
    "model_type": "llama_moe_upscaling", "architectures": ["LlamaMoEUpscalingForCausalLM"], "torch_dtype": "float32",
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 100000.0, "rope_scaling": {"factor": 4.0, "type": "linear"}, "pretraining_tp": 1,
    "tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2, "num_experts": 4, "num_selects": 3, "gate_type": "TopKUniversalBalancedNoisyGate",
    "gate_network": "mlp", "gate_use_softmax": True, "gate_add_noise": True, "gate_noise_epsilon": 0.01,
    "calculator_type": "UniversalCalculator", "multiply_gate_scores": True, "score_scale_factor": [1.0, 1.0],
    "add_weight_norm": False, "shared_expert_weight": 0.75}


def reference_model(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random checkpoint in the reference's format, with a tokenizer; return ``directory``."""
    config = CONFIG | changes
    save_file(_weights(config, seed), _made(directory) / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer().save_pretrained(directory)
    return directory


def reference_logits(directory: Path, ids_BS: torch.Tensor, rope_base: float = 10000.0) -> torch.Tensor:
    """Return the logits B,S,V that the reference's code computes for its checkpoint in evaluation mode (no noise)."""
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    x_BSD = weights["model.embed_tokens.weight"][ids_BS]
    for layer in range(config["num_hidden_layers"]):
        own = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in weights.items() if name.startswith(f"model.layers.{layer}.")}
        x_BSD = x_BSD + _attention(_norm(x_BSD, own["input_layernorm.weight"], config), own, config, rope_base)
        h_BSD = _norm(x_BSD, own["post_attention_layernorm.weight"], config)
        x_BSD = x_BSD + _mixture(h_BSD.reshape(-1, h_BSD.shape[-1]), own, config).reshape(h_BSD.shape)
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return _norm(x_BSD, weights["model.norm.weight"], config) @ head.T


def _weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    routed = config["num_experts"] - int("Universal" in config["gate_type"])
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        of_layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden), "self_attn.k_proj.weight": (key_value, hidden),
            "self_attn.v_proj.weight": (key_value, hidden), "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate.gate_network.0.weight": (routed, hidden), "mlp.gate.gate_network.2.weight": (routed, routed)}
        if config["gate_add_noise"]:
            of_layer["mlp.gate.weight_noise.weight"] = (routed, hidden)
        for expert in range(config["num_experts"]):
            experts = "mlp.calculator.experts"
            of_layer |= {
                f"{experts}.weight_gate.{expert}.weight": (ffn, hidden), f"{experts}.weight_up.{expert}.weight": (ffn, hidden),
                f"{experts}.weight_down.{expert}.weight": (hidden, ffn)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            return 1 + 0.1 * noise
        return noise * (0.5 if "gate_network" in name else 0.15)

    return {name: value(name, shape) for name, shape in shapes.items()}


def _norm(x: torch.Tensor, weight: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])


def _attention(
    x_BSD: torch.Tensor, own: dict[str, torch.Tensor], config: dict[str, Any], rope_base: float,
) -> torch.Tensor:
    heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    length = x_BSD.shape[1]
    query, key, value = (
        (x_BSD @ own[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, size)).transpose(1, 2) for name in "qkv")
    position = torch.arange(length) / (config["rope_scaling"] or {"factor": 1.0})["factor"]
    angle = position[:, None] * rope_base ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angle), angle)
    query, key = (_turned(item, turn) for item in (query, key))
    repeats = heads // config["num_key_value_heads"]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(size)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return mixed @ own["self_attn.o_proj.weight"].T


def _turned(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Apply RoPE: dimensions i and i + half form one complex number."""
    first, second = x.chunk(2, dim=-1)
    result = torch.complex(first.contiguous(), second.contiguous()) * turn
    return torch.cat([result.real, result.imag], dim=-1)


def _mixture(x_TD: torch.Tensor, own: dict[str, torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    """Apply every expert to every token, weighted; experts that were not chosen have weight 0."""
    hidden = torch.tanh(x_TD @ own["mlp.gate.gate_network.0.weight"].T)
    logits_TR = hidden @ own["mlp.gate.gate_network.2.weight"].T
    if config["gate_type"] == "TopKBalancedNoisyGate":
        best = logits_TR.topk(config["num_selects"], dim=1)
        weight_TN = torch.zeros_like(logits_TR).scatter(1, best.indices, best.values.softmax(1))
    else:
        best = logits_TR.softmax(1).topk(config["num_selects"] - 1, dim=1)
        largest = best.values[:, :1]
        normalized = config["gate_type"] == "TopKUniversalBalancedNoisyGate"
        weights = best.values.softmax(1) * largest if normalized else best.values
        weight_TN = torch.cat([1 - largest, torch.zeros_like(logits_TR).scatter(1, best.indices, weights)], 1)
    total = torch.zeros_like(x_TD)
    for expert in range(config["num_experts"]):
        gate, up, down = (
            own[f"mlp.calculator.experts.weight_{name}.{expert}.weight"] for name in ("gate", "up", "down"))
        total += weight_TN[:, expert:expert + 1] * ((F.silu(x_TD @ gate.T) * (x_TD @ up.T)) @ down.T)
    return total


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
