"""The content of a model directory's config.json: dense or upcycled, family, layers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import ValidationError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.initialization import no_init_weights

from xft_core.errors import CheckpointError
from xft_core.families import Family
from xft_core.models.classes import auto_class
from xft_core.models.discovery import check_decoder, family_of
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, dtype_that_holds, read_config
from xft_core.models.stored_form import check_dense, head_and_embedding, is_tied, shape_only, use_names_of_model, with_tying
from xft_core.recipe.sections import UpcycleConfig

MOE_MODEL_TYPE = "xft_moe"
# Fields of a config.json that name code or kernels to load. They are ignored: the code is always transformers' own.
NAMES_OF_CODE = frozenset({"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"})
MOST_LAYERS = 1000  # more cannot be a model, and building them would take forever, even without memory
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_mixed": torch.float32}


def is_moe(directory: Path) -> bool:
    """Whether a model directory is an upcycled one. Raises CheckpointError if it is not a model directory."""
    return read_config(directory)["model_type"] == MOE_MODEL_TYPE


def upcycle_config_of(directory: Path) -> UpcycleConfig:
    """The UpcycleConfig of an upcycled directory. Raises CheckpointError for a dense one."""
    config = read_config(directory)
    if config["model_type"] != MOE_MODEL_TYPE:
        raise CheckpointError(
            f"{str(directory)!r} is a dense {config['model_type']} model, but an upcycled Mixture-of-Experts is needed.")
    try:
        return UpcycleConfig.model_validate(config.get("upcycle"))
    except ValidationError as error:
        reason = error.errors()[0]
        raise CheckpointError(
            f"config.json of {str(directory)!r} has no usable upcycle section: {'.'.join(map(str, reason['loc']))} "
            f"{reason['msg']}.") from None


def dense_config_of(reader: CheckpointReader) -> dict[str, Any]:
    """The dense architecture's config.json of any model directory, with tie_word_embeddings set to match the tensors.

    Renames the reader's tensors of a dense model to the names of its family, whatever the files call them. Raises
    CheckpointError for a dense model whose tensors do not match its config.
    """
    dense_config = _dense_config(reader.directory)
    config = transformers_config(dense_config)
    model = shape_only(config)
    if not is_moe(reader.directory):
        use_names_of_model(reader, model)
        check_layers(reader, family_of(config), num_layers_of(config))
        check_dense(reader, model)
    head, embedding = head_and_embedding(model)
    if embedding not in reader and head in reader:  # tied, and stored as the head alone
        reader.rename({head: embedding})
    return with_tying(dense_config, model, is_tied(reader, model))


def _dense_config(directory: Path) -> dict[str, Any]:
    config = read_config(directory)
    dense_config = config.get("dense_config") if config["model_type"] == MOE_MODEL_TYPE else config
    if not isinstance(dense_config, dict) or not isinstance(dense_config.get("model_type"), str):
        raise CheckpointError(f"config.json of {str(directory)!r} has no dense_config of a model.")
    return dense_config


def transformers_config(dense_config: dict[str, Any]) -> PreTrainedConfig:
    """A config.json as transformers' own configuration, checked by building the model without memory.

    Raises CheckpointError for a family that cannot be upcycled, and for values that do not describe a model.
    """
    if dense_config.get("quantization_config") is not None:
        raise CheckpointError("config.json has a quantization_config: the model is quantised. Convert it to BF16 or F32 first.")
    if dense_config["model_type"] not in CONFIG_MAPPING:
        raise CheckpointError(
            f"The model type {dense_config['model_type']!r} of config.json is not known to transformers "
            f"{transformers.__version__}. Models with their own code are not loaded.")
    try:
        config = AutoConfig.for_model(**{name: value for name, value in dense_config.items() if name not in NAMES_OF_CODE})
        layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise CheckpointError(f"num_hidden_layers is {layers:,} in config.json: that is not a model.")
        check_decoder(config)
        with torch.device("meta"), no_init_weights():
            auto_class(config).from_config(config)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # each family validates in its own way, or not at all
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        raise CheckpointError(
            f"The config.json does not describe a {dense_config['model_type']} model: {type(error).__name__}: {reason}"
        ) from None
    family_of(config)
    return config


def num_layers_of(config: PreTrainedConfig) -> int:
    """Decoder layers of a model of this configuration; if it reads pictures, those of its language model."""
    return int(config.get_text_config().num_hidden_layers)


def decoder_layers(model: nn.Module, family: Family) -> nn.ModuleList:
    """The decoder layers of a model of this family."""
    return model.get_submodule(family.layers)  # type: ignore[return-value]


def check_layers(reader: CheckpointReader, family: Family, num_layers: int) -> None:
    """Raise CheckpointError if the tensors are those of fewer or more layers than the config says. If no layer is found at all,
    the names differ, and ``check_dense`` gives the reason."""
    stored = {
        int(name.removeprefix(f"{family.layers}.").split(".")[0])
        for name in reader.names() if name.startswith(f"{family.layers}.")}
    if stored and stored != set(range(num_layers)):
        raise CheckpointError(
            f"{str(reader.directory)!r} holds the tensors of {len(stored)} layers, but its config says {num_layers}: it is "
            "not the checkpoint of its config.")


def save_moe_config(directory: Path, dense_config: dict[str, Any], upcycle: UpcycleConfig) -> None:
    """Write the config.json of an upcycled directory."""
    content = {"model_type": MOE_MODEL_TYPE, "dense_config": dense_config, "upcycle": upcycle.recorded()}
    (directory / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def save_dense_config(directory: Path, dense_config: dict[str, Any], plans: Iterable[TensorPlan]) -> None:
    """Write a dense model's ``config.json``, without custom code. Its dtype is the one that holds the tensors, whatever the
    source's file says: transformers loads, and so rounds, the entire model in it."""
    content = {name: value for name, value in dense_config.items() if name not in NAMES_OF_CODE | {"torch_dtype"}}
    (directory / "config.json").write_text(json.dumps(content | {"dtype": dtype_that_holds(plans)}, indent=2), encoding="utf-8")
