"""Create tiny random models with transformers' own classes, from families in and outside the table, with a real tokenizer."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Processor,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

VOCABULARY = 320
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")

PICTURE_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}</s>\n{% endfor %}"
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

# Families outside the table, whose rows are derived from their modules.
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
# Models that read pictures: each configuration without the sizes, which all share.
_TEXT = {name: value for name, value in _SIZES.items() if name != "max_position_embeddings"} | {"max_position_embeddings": 512}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
           "patch_size": 4}
PICTURE_TOKEN = 3  # token ID in the tokenizer of ``picture_model``
PICTURE_CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **_TEXT}, "image_token_index": PICTURE_TOKEN,
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION}},
    "idefics3": {
        "text_config": {"model_type": "llama", **_TEXT}, "vision_config": _VISION, "image_token_id": PICTURE_TOKEN,
        "scale_factor": 2, "pad_token_id": 2},
    "smolvlm": {
        "text_config": {"model_type": "llama", **_TEXT}, "vision_config": _VISION, "image_token_id": PICTURE_TOKEN,
        "scale_factor": 2, "pad_token_id": 2},
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64, **_TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION}, "image_token_index": PICTURE_TOKEN,
        "boi_token_index": 4, "eoi_token_index": 5, "mm_tokens_per_image": 4},
    "qwen2_vl": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}, **_TEXT},
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
                          "spatial_merge_size": 2, "temporal_patch_size": 2},
        "image_token_id": PICTURE_TOKEN, "video_token_id": 6, "vision_start_token_id": 4, "vision_end_token_id": 5,
        "tie_word_embeddings": False},
}
TESTED_FAMILIES = [*FAMILY_CONFIGS, "gpt2", "opt", "bloom"]  # every kind of FFN; the rest are in test_found_families.py
# Tests over all families run by default with a gated, a fused, a plain and a discovered FFN.
BY_DEFAULT = ("llama", "gpt2")


def each_family(families: Iterable[str] = TESTED_FAMILIES) -> list[Any]:
    """Return the families as test parameters. All except those in BY_DEFAULT are marked slow."""
    return [pytest.param(family, marks=() if family in BY_DEFAULT else pytest.mark.slow) for family in families]


def shared_data(name: str) -> Path:
    """Return a file of the shared data next to the project, wherever in the tree this checkout is. The file may not exist."""
    found = [parent / "shared" / "data" / name for parent in Path(__file__).resolve().parents]
    return next((path for path in found if path.is_file()), found[1])


def tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with 320 tokens that covers every byte. <s>, </s> and <pad> are 0, 1 and 2, followed by
    the special tokens in ``more``."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>", "<pad>", *more], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(["def f(x):\n    return x + 1\n", "@@ Instruction\n\n@@ Response\n```python\n"] * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE, **({"additional_special_tokens": list(more)} if more else {}))


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny model of ``family``."""
    return AutoConfig.for_model(family, **(_SIZES | (FAMILY_CONFIGS | FOUND_CONFIGS)[family] | changes))


def dense_model(directory: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random dense model of ``family`` with its tokenizer; return ``directory``."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    with torch.no_grad():  # larger than the usual 0.02, and moves biases and norms off their neutral start
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def picture_model(directory: Path, family: str = "idefics3", seed: int = 0) -> Path:
    """Write a tiny random model of ``family`` that reads pictures, without a tokenizer; return ``directory``."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **PICTURE_CONFIGS[family])
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # as in dense_model
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory


def picture_batch(family: str, num_rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return text with one random picture per row, as the family's processor would pass it to its model."""
    generator = torch.Generator().manual_seed(seed)
    tokens = {"llava": 16, "idefics3": 4, "smolvlm": 4, "gemma3": 4, "qwen2_vl": 4}[family]
    text = torch.randint(10, VOCABULARY, (num_rows, 12), generator=generator)
    begin, end = torch.full((num_rows, 1), 4), torch.full((num_rows, 1), 5)
    input_ids = torch.cat([text[:, :4], begin, torch.full((num_rows, tokens), PICTURE_TOKEN), end, text[:, 4:]], dim=1)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    kinds = (input_ids == PICTURE_TOKEN).long()
    if family == "qwen2_vl":
        pixels = torch.randn(num_rows * 16, 3 * 2 * 4 * 4, generator=generator)
        grid = torch.tensor([[1, 4, 4]] * num_rows)
        return batch | {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    pixels = torch.randn(num_rows, 3, 16, 16, generator=generator)
    if family in ("idefics3", "smolvlm"):
        return batch | {"pixel_values": pixels[:, None]}
    return batch | {"pixel_values": pixels} | ({"token_type_ids": kinds} if family == "gemma3" else {})


def picture_processor(directory: Path, family: str = "llava") -> None:
    """Add a processor to the directory of a ``picture_model``. Pictures have 16 x 16 pixels: 16 tokens each for llava, 4 for
    other families. Skip if the family's processor needs a package that is not installed."""
    if family in ("idefics3", "smolvlm"):
        # Both families ship with this processor. SmolVLMProcessor, for the video models, needs num2words.
        names = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
        Idefics3Processor(
            Idefics3ImageProcessorPil(
                size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False),
            tokenizer(*names), image_seq_len=4, chat_template=PICTURE_CHAT_TEMPLATE).save_pretrained(directory)
        return
    if family == "gemma3":
        parts = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
        named = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer(*parts.values()).backend_tokenizer, bos_token="<s>", eos_token="</s>",
            pad_token="<pad>", extra_special_tokens=parts)
        Gemma3Processor(
            Gemma3ImageProcessorPil(size={"height": 16, "width": 16}), named, image_seq_length=4,
            chat_template=PICTURE_CHAT_TEMPLATE.replace("<image>", "<boi>")).save_pretrained(directory)
        return
    if family == "qwen2_vl":
        pytest.importorskip("torchvision")  # needed by its video processor, without which the processor cannot be created
        sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
        names = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
        Qwen2VLProcessor(
            Qwen2VLImageProcessorPil(**sizes, size={"shortest_edge": 256, "longest_edge": 256}), tokenizer(*names),
            Qwen2VLVideoProcessor(**sizes), chat_template=PICTURE_CHAT_TEMPLATE.replace(
                "<image>", "<|vision_start|><|image_pad|><|vision_end|>")).save_pretrained(directory)
        return
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        image_processor, tokenizer("<image>"), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=PICTURE_CHAT_TEMPLATE).save_pretrained(directory)


def drawn(color: str, size: int = 24) -> str:
    """Return a square of one color as a PNG data URL."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
