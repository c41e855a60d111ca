"""Checkpoints with random weights in the shapes that the benchmarks use, written one tensor at a time."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xft_core.demo import DEMO_DIR
from xft_core.models.loading import copy_beside_weights
from xft_core.models.safetensors_io import TensorPlan, write_checkpoint

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "bos_token_id": 0, "eos_token_id": 1, "dtype": "bfloat16"}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": LLAMA | {
        "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 512, "tie_word_embeddings": True},
    "135M": LLAMA | {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "1.3B": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 32256, "tie_word_embeddings": False},
}


def shape(name: str, **changes: Any) -> dict[str, Any]:
    """Return the config.json of a shape, with some fields changed (None leaves a field unchanged)."""
    return SHAPES[name] | {field: value for field, value in changes.items() if value is not None}


def write_random(directory: Path, config: dict[str, Any], seed: int = 0, max_shard_bytes: int = 1_000_000_000) -> int:
    """Write a sharded dense checkpoint with random bf16 weights and the demo's tokenizer. Returns its weights' size in
    bytes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))

    def plan(number: int, name: str, size: list[int]) -> TensorPlan:
        def parts() -> list[torch.Tensor]:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            return [torch.randn(size, generator=generator).mul_(0.02).to(torch.bfloat16)]

        return TensorPlan(name, size, torch.bfloat16, parts)

    directory.mkdir(parents=True)
    total = write_checkpoint(
        directory,
        [plan(number, name, list(item.shape)) for number, (name, item) in enumerate(model.named_parameters())], max_shard_bytes)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    copy_beside_weights(DEMO_DIR / "model", directory)
    return total


def checkpoint_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a benchmark that writes checkpoints."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1.3B")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    parser.add_argument("--mergekit", type=Path, help="bin directory of an environment with mergekit")
    return parser
