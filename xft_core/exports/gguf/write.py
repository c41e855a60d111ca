"""Write dense models and granite mixtures as GGUF files, with the quantizations of the ``gguf`` package.

The package quantises to Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0. It can only read K-quants (Q4_K_M): create them from an F16 file with
llama.cpp's ``llama-quantize``. As in llama.cpp, vectors stay in F32, and below 8 bits embeddings and head use Q8_0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xft_core.errors import CheckpointError
from xft_core.exports.gguf.vocabulary import Vocabulary
from xft_core.families import GGUF_ARCHITECTURES
from xft_core.models.config import dense_config_of, transformers_config
from xft_core.models.safetensors_io import CheckpointReader, read_config
from xft_core.recipe.sections.export import Quantization

_GRANITE_PAIRS = {
    "block_sparse_moe.input_linear.weight": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "shared_mlp.input_linear.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight")}
_GRANITE_NAMES = {
    "block_sparse_moe.output_linear.weight": "ffn_down_exps.weight",
    "block_sparse_moe.router.layer.weight": "ffn_gate_inp.weight",
    "shared_mlp.output_linear.weight": "ffn_down_shexp.weight"}

# Old versions of transformers stored the frequencies of positions. llama.cpp refuses a file with tensors that it does not use.
_OF_OLD_VERSIONS = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class Special:
    """Special tokens for programs that run the file. ``ends``: tokens that end an answer, the main one first."""

    bos: int | None
    pad: int | None
    ends: Sequence[int]
    adds_bos: bool


def write_gguf(
    source: Path, path: Path, quantization: Quantization, vocabulary: Vocabulary, special: Special, chat_template: str | None,
) -> None:
    """Write the dense or granite model directory ``source`` as one file.

    Raises CheckpointError for an unsupported model type, or a feature of it that the file cannot express.
    """
    import gguf

    content = read_config(source)
    _check_type(content)
    name, alternates = GGUF_ARCHITECTURES[content["model_type"]]
    arch = gguf.MODEL_ARCH[name]
    with CheckpointReader(source) as reader:
        config = _config(content, reader)
        writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
        try:
            _write_fields(writer, config, content, quantization)
            _write_vocabulary(writer, vocabulary, special, chat_template)
            names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
            for stored in reader.names():
                if stored.endswith(_OF_OLD_VERSIONS):
                    continue
                for target, tensor in _named(reader, stored, names, config, alternates):
                    _add(writer, target, tensor, quantization)
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def check_architecture(source: Path) -> None:
    """Raise CheckpointError for an unsupported model type, or a feature of it that the file cannot express."""
    content = read_config(source)
    _check_type(content)
    with CheckpointReader(source) as reader:
        _config(content, reader)


def _check_type(content: dict[str, Any]) -> None:
    if content["model_type"] not in GGUF_ARCHITECTURES:
        raise CheckpointError(
            f"A model of type {content['model_type']!r} cannot be written to GGUF here (known: "
            f"{', '.join(GGUF_ARCHITECTURES)}). Convert it with llama.cpp's convert_hf_to_gguf.py.")


def _config(content: dict[str, Any], reader: CheckpointReader) -> Any:
    config: Any
    if content["model_type"] == "granitemoeshared":
        from transformers import GraniteMoeSharedConfig

        config = GraniteMoeSharedConfig(**content)
    else:
        config = transformers_config(dense_config_of(reader))
    window, biases = getattr(config, "sliding_window", None), ("mlp_bias", "attention_bias")
    slides = window is not None and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings
    if slides:
        raise CheckpointError(f"The model has a sliding window of {window} tokens, which llama.cpp's architecture lacks.")
    if found := [bias for bias in biases if getattr(config, bias, False)]:
        raise CheckpointError(f"The model has {found[0]}, which cannot be written to GGUF here.")
    if getattr(config, "hidden_act", "silu") != "silu":
        raise CheckpointError(f"The model's activation is {config.hidden_act}, but llama.cpp computes silu.")
    if (rope := config.rope_parameters).get("rope_type", "default") != "default":
        raise CheckpointError(f"The model's positions are scaled ({rope['rope_type']}), which cannot be written to GGUF here.")
    return config


def _write_fields(writer: Any, config: Any, content: dict[str, Any], quantization: Quantization) -> None:
    import gguf

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_name("merged" if content["model_type"] != "granitemoeshared" else "mixture")
    writer.add_file_type(int(gguf.LlamaFileType[
        {"f32": "ALL_F32"}.get(quantization, f"MOSTLY_{quantization.upper()}")]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if content["model_type"] == "granitemoeshared":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _write_vocabulary(writer: Any, vocabulary: Vocabulary, special: Special, chat_template: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    if special.bos is not None:
        writer.add_bos_token_id(special.bos)
    if special.pad is not None:
        writer.add_pad_token_id(special.pad)
    # llama.cpp ends an answer at each of these three
    kinds = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token in zip(kinds, special.ends, strict=False):
        add(token)
    writer.add_add_bos_token(special.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _named(
    reader: CheckpointReader, stored: str, names: Any, config: Any, alternates: bool,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a stored tensor under its name, or names, in the file."""
    tensor = reader.get(stored)
    layer, _, inner = stored.removeprefix("model.layers.").partition(".")
    if inner in _GRANITE_PAIRS:
        for target, half in zip(_GRANITE_PAIRS[inner], tensor.chunk(2, dim=-2), strict=True):
            yield f"blk.{layer}.{target}", half
        return
    if inner in _GRANITE_NAMES:
        yield f"blk.{layer}.{_GRANITE_NAMES[inner]}", tensor
        return
    target = names.get_name(stored, try_suffixes=(".weight", ".bias"))
    if target is None:
        raise CheckpointError(f"Tensor {stored!r} has no name in a GGUF file.")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, count in heads.items():
        if alternates and f".{projection}." in stored:
            tensor = tensor.reshape(count, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    yield target, tensor


def _add(writer: Any, name: str, tensor: torch.Tensor, quantization: Quantization) -> None:
    import gguf

    data = tensor.float().numpy()
    kind = gguf.GGMLQuantizationType[_type_of(name, data, quantization)]
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(data))
        return
    writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)


def _type_of(name: str, data: np.ndarray, quantization: Quantization) -> str:
    if data.ndim == 1 or name.endswith("ffn_gate_inp.weight"):
        return "F32"
    if quantization in ("f32", "f16", "bf16"):
        return quantization.upper()
    if data.shape[-1] % 32:  # blocks have 32 numbers
        return "F16"
    outer = name in ("token_embd.weight", "output.weight")
    return "Q8_0" if outer else quantization.upper()
