"""Load model directories, dense or upcycled, as transformers models, and copy their other files.

An upcycled directory is a model directory whose config.json reads
``{"model_type": "xft_moe", "dense_config": <the dense checkpoint's own>, "upcycle": <UpcycleConfig>}``; plain
transformers refuses it rather than load half of it. Its tensors are named as in the dense model, except for the FFNs:
``<mlp>.shared_expert.<dense names>``, ``<mlp>.experts.{gate_up_proj,up_proj,down_proj}[_bias]`` (stacked, E first) and
``<mlp>.router.*``. If experts are stored once, the FFN's tensors keep their dense names and are expanded here. Low-rank
experts are ``<mlp>.experts.<layer>_{a,b,bias}`` and, for groups, ``group_<layer>_{a,b,bias}``; the weights that they share are
``<mlp>.shared_expert.*``, ``<mlp>.base.*`` without a shared expert, or have their dense names before tuning.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from xft_core.errors import CheckpointError, first_line
from xft_core.files.digests import model_files, named_chat_templates
from xft_core.files.parsing import parse_json
from xft_core.models.classes import auto_class
from xft_core.models.config import dense_config_of, is_moe, transformers_config, upcycle_config_of
from xft_core.models.gguf_files import gguf_file, load_gguf
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.models.tokenizer import load_tokenizer as load_tokenizer
from xft_core.models.upcycled import add_stored_bias, check_tensors, empty_moe, fill

disable_progress_bar()

# Never copied to another model's directory. params.json: configuration of a Mistral model, which vLLM prefers to config.json.
NOT_BESIDE_WEIGHTS = frozenset({"config.json", "manifest.json", "router.json", "params.json"})


def load_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A dense or upcycled model, or one in a GGUF file, in evaluation mode on the CPU. Raises CheckpointError if it is
    incomplete."""
    if path := gguf_file(directory):
        return _with_generation_config(load_gguf(path, dtype), directory)
    with CheckpointReader(directory) as reader:
        dense_config = dense_config_of(reader)
        if not is_moe(directory):
            return _load_dense(directory, dense_config, dtype)
        upcycle = upcycle_config_of(directory)
        check_tensors(reader, dense_config, upcycle)
        model = empty_moe(dense_config, upcycle, dtype)
        add_stored_bias(model, reader)
        fill(model, reader)
    return _with_generation_config(model, directory)


def _with_generation_config(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    if (directory / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(directory)
        except Exception as error:  # as for the tokenizer
            raise CheckpointError(f"generation_config.json of {str(directory)!r} cannot be used: {first_line(error)}") from None
    return model.eval()


def copy_beside_weights(source: Path, target: Path) -> None:
    """Copy a model directory's other files: tokenizer, chat template, generation defaults, but no weights and no config."""
    for path in model_files(source):
        is_weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if not is_weights and path.name not in NOT_BESIDE_WEIGHTS:
            shutil.copyfile(path, target / path.name)
    _copy_named_templates(source, target)


def _copy_named_templates(source: Path, target: Path) -> None:
    """Put a tokenizer's several chat templates (default, tool_use) into tokenizer_config.json, where earlier versions of
    transformers kept them. Later ones use a subdirectory, but models here have none: they are published, too, as flat files."""
    named = {path.stem: path for path in named_chat_templates(source)}
    if not named:
        return
    default, path = source / "chat_template.jinja", target / "tokenizer_config.json"
    files = ({"default": default} if default.is_file() else {}) | named
    content = parse_json(path.read_bytes()) if path.is_file() else {}
    content["chat_template"] = [
        {"name": name, "template": file.read_text(encoding="utf-8")} for name, file in files.items()]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    (target / default.name).unlink(missing_ok=True)  # transformers would read it instead


def _load_dense(directory: Path, dense_config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    config = transformers_config(dense_config)
    try:
        model, report = auto_class(config).from_pretrained(
            directory, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # as for the tokenizer
        raise CheckpointError(f"{str(directory)!r} cannot be loaded: {first_line(error)}") from None
    if report["mismatched_keys"]:
        raise CheckpointError(f"{str(directory)!r} has tensors whose shapes differ from its config.")
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{str(directory)!r} lacks {len(missing)} tensors, including {missing[0]!r}: it is not the checkpoint of its "
            "config.")
    return model.eval()
