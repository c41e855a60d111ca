"""A merge of low-rank experts as a LoRA adapter for PEFT, and the model that it applies to.

    <directory>/shared_weights    a dense model whose FFNs are the weights shared by all experts
    <directory>/adapter           adapter_config.json and adapter_model.safetensors: sum_i c_i (W_i - W_s), of rank R r (and
                                  G r_g more with groups), the same for every layer; scale 1

    base = AutoModelForCausalLM.from_pretrained(directory / "shared_weights")
    model = PeftModel.from_pretrained(base, directory / "adapter")
"""

import json
import re
from functools import partial
from pathlib import Path

import torch

from xft_core.mixing.low_rank import Changes
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.safetensors_io import TensorPlan, write_checkpoint

SHARED_WEIGHTS, ADAPTER = "shared_weights", "adapter"


def shared_weights_plans(mixture: MixtureReader) -> list[TensorPlan]:
    """The tensors of the dense model with the weights that low-rank experts share."""
    family, layers = mixture.family, range(mixture.num_layers)
    mlps = tuple(prefix for layer in layers for prefix in (*family.ffn_prefixes(layer), f"{family.block_name(layer)}."))
    reader = mixture.reader
    plans = [reader.copy_plan(name) for name in reader.names() if not name.startswith(mlps)]
    for layer in range(mixture.num_layers):
        plans += [reader.copy_plan(tensor.stored_shared, tensor.name) for tensor in mixture.low_rank_tensors(layer)]
    return plans


def write_adapter(mixture: MixtureReader, weight_LN: torch.Tensor, directory: Path) -> None:
    """Write the adapter of the merge with shares ``weight_LN``, L,N, into an existing empty directory."""
    plans, rank, has_bias = [], 0, False
    for layer in range(mixture.num_layers):
        for tensor in mixture.low_rank_tensors(layer):
            module, _, kind = tensor.name.rpartition(".")
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            parts = {"B": partial(_out, tensor.changes, weight_LN[layer], dtype)}
            if kind == "weight":
                parts["A"] = partial(_into, tensor.changes, dtype)
                rank = len(tensor.changes.column_shares(weight_LN[layer]))
            shapes = {"A": [rank, *tensor.shape[1:]], "B": [tensor.shape[0], rank] if kind == "weight" else tensor.shape}
            has_bias |= kind == "bias"
            plans += [TensorPlan(f"base_model.model.{module}.lora_{side}.{kind}", shapes[side], dtype, make)
                      for side, make in parts.items()]
    write_checkpoint(directory, plans, max_shard_bytes=2**62)
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    names = "|".join(map(re.escape, (*mixture.family.up, mixture.family.down)))
    inside = re.escape(f"{mixture.family.mlp}." if mixture.family.mlp else "")
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": f"../{SHARED_WEIGHTS}", "r": rank,
        "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "lora_bias": has_bias, "inference_mode": True,
        "target_modules": rf"{re.escape(mixture.family.layers)}\.\d+\.{inside}({names})"}
    (directory / "adapter_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _into(changes: Changes, dtype: torch.dtype) -> list[torch.Tensor]:
    return [changes.a_JI(dtype, torch.device("cpu"))]


def _out(changes: Changes, weight_N: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """B with the experts' shares; for a bias, its change."""
    b_OJ, share_J = changes.b_OJ(torch.float64, torch.device("cpu")), changes.column_shares(weight_N)
    return [((b_OJ @ share_J) if changes.is_bias else b_OJ * share_J).to(dtype)]
