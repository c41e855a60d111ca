"""Tiny random models of families in the table and of others, made through transformers' own classes, with a real tokenizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

VOCABULARY = 320
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}

FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 100000.0},
    "mistral": {"sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "stablelm": {"use_qkv_bias": True},
    "phi3": {},
    "olmo2": {},
    "starcoder2": {"use_bias": True},
    "gpt_neox": {"use_parallel_residual": True},
}

# Families that are not in the table: their rows are found.
FOUND_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 48, **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "bloom": {},
    "falcon": {"ffn_hidden_size": 48, "bias": True},
    "gpt_bigcode": {"n_inner": 48},
    "phi": {},
    "cohere": {"logit_scale": 0.25},
    "glm": {"head_dim": 8},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5},
    "exaone4": {"head_dim": 8, "sliding_window": 16},
    "nemotron": {},
    "olmo": {},
    "gemma": {"head_dim": 8},
    "smollm3": {},
}
TESTED_FAMILIES = [*FAMILY_CONFIGS, "gpt2", "opt", "bloom"]  # each kind of FFN; others are in test_found_families.py
# What is tried with every family is tried by default with a gated FFN, a fused one, a plain one and a found one.
BY_DEFAULT = ("llama", "phi3", "starcoder2", "gpt2")


def each_family(families: Iterable[str] = TESTED_FAMILIES) -> list[Any]:
    """Parameters of a test: the families, all but those BY_DEFAULT marked slow."""
    return [pytest.param(family, marks=() if family in BY_DEFAULT else pytest.mark.slow) for family in families]


def shared_data(name: str) -> Path:
    """A file of the data that lies beside the project, wherever in the tree this checkout is; it may not exist."""
    found = [parent / "shared" / "data" / name for parent in Path(__file__).resolve().parents]
    return next((path for path in found if path.is_file()), found[1])


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 tokens that knows every byte; <s>, </s> and <pad> are 0, 1 and 2."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(["def f(x):\n    return x + 1\n", "@@ Instruction\n\n@@ Response\n```python\n"] * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE)


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of ``family``."""
    return AutoConfig.for_model(family, **(_SIZES | (FAMILY_CONFIGS | FOUND_CONFIGS)[family] | changes))


def dense_model(directory: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random dense model of ``family`` with its tokenizer; returns ``directory``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    with torch.no_grad():  # livelier than the usual 0.02, and biases and norms not at their neutral start
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
