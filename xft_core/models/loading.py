"""Model directories, dense or upcycled, to transformers models and back.

An upcycled directory is a model directory whose config.json reads
``{"model_type": "xft_moe", "dense_config": <the dense checkpoint's own>, "upcycle": <UpcycleConfig>}``; plain
transformers refuses it rather than load half of it. Its tensors are named as in the dense model, but for the FFNs:
``<mlp>.shared_expert.<dense names>``, ``<mlp>.experts.{gate_up_proj,up_proj,down_proj}[_bias]`` (stacked, E first) and
``<mlp>.router.*``. Where experts are stored once, the FFN's tensors keep their dense names and are expanded here.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from xft_core.errors import CheckpointError
from xft_core.families import Family, family_of
from xft_core.files.digests import model_files
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, read_config, write_checkpoint
from xft_core.models.stored_form import check_dense, head_and_embedding, is_tied, shape_only, use_names_of_model, with_tying
from xft_core.moe.experts import MoeBlock
from xft_core.recipe.sections import UpcycleConfig

disable_progress_bar()

MOE_MODEL_TYPE = "xft_moe"
# Fields of a config.json that name code or kernels to load: nothing of them is used, the code is always transformers' own.
NAMES_OF_CODE = frozenset({"auto_map", "attn_implementation", "_attn_implementation", "experts_implementation"})
MOST_LAYERS = 1000  # more is no model: building them, even without memory, would take for ever
# Not for another model's directory. params.json: a Mistral model's own configuration, which vLLM prefers to config.json.
NOT_BESIDE_WEIGHTS = frozenset({"config.json", "manifest.json", "router.json", "params.json"})
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_mixed": torch.float32}


def is_moe(directory: Path) -> bool:
    """Whether a model directory is an upcycled one. Raises CheckpointError when it is no model directory."""
    return read_config(directory)["model_type"] == MOE_MODEL_TYPE


def upcycle_config_of(directory: Path) -> UpcycleConfig:
    """The UpcycleConfig of an upcycled directory. Raises CheckpointError for a dense one."""
    config = read_config(directory)
    if config["model_type"] != MOE_MODEL_TYPE:
        raise CheckpointError(
            f"{str(directory)!r} is a dense {config['model_type']} model; a Mixture-of-Experts (made by upcycle) is needed.")
    try:
        return UpcycleConfig.model_validate(config.get("upcycle"))
    except ValidationError as error:
        reason = error.errors()[0]
        raise CheckpointError(
            f"config.json of {str(directory)!r} holds no upcycle section that can be used: {'.'.join(map(str, reason['loc']))} "
            f"{reason['msg']}.") from None


def dense_config_of(reader: CheckpointReader) -> dict[str, Any]:
    """The dense architecture's config.json of any model directory, with tie_word_embeddings as the tensors have it.

    The tensors of a dense model get the names of its family from here on, whatever the files call them. Raises
    CheckpointError for a dense model that is not the checkpoint of its config.
    """
    dense_config = _dense_config(reader.directory)
    config = transformers_config(dense_config)
    model = shape_only(config)
    if not is_moe(reader.directory):
        use_names_of_model(reader, model)
        check_layers(reader, family_of(config.model_type), int(config.num_hidden_layers))
        check_dense(reader, model)
    head, embedding = head_and_embedding(model)
    if embedding not in reader and head in reader:  # tied, and stored as the head alone
        reader.rename({head: embedding})
    return with_tying(dense_config, model, is_tied(reader, model))


def _dense_config(directory: Path) -> dict[str, Any]:
    config = read_config(directory)
    dense_config = config.get("dense_config") if config["model_type"] == MOE_MODEL_TYPE else config
    if not isinstance(dense_config, dict) or not isinstance(dense_config.get("model_type"), str):
        raise CheckpointError(f"config.json of {str(directory)!r} holds no dense_config of a model.")
    return dense_config


def transformers_config(dense_config: dict[str, Any]) -> PreTrainedConfig:
    """A config.json as transformers' own configuration, checked by building the model without memory.

    Raises CheckpointError for an unknown family and for values that make no model.
    """
    family_of(dense_config["model_type"])
    layers = dense_config.get("num_hidden_layers", 1)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise CheckpointError(f"num_hidden_layers is {layers:,} in config.json: that is no model.")
    if dense_config.get("quantization_config") is not None:
        raise CheckpointError("config.json has a quantization_config: the model is quantised. Convert it to BF16 or F32 first.")
    try:
        config = AutoConfig.for_model(**{name: value for name, value in dense_config.items() if name not in NAMES_OF_CODE})
        with torch.device("meta"), no_init_weights():
            AutoModelForCausalLM.from_config(config)
        return config
    except MemoryError:
        raise
    except Exception as error:  # each family checks, or does not check, in its own way
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        raise CheckpointError(
            f"The config.json makes no {dense_config['model_type']} model: {type(error).__name__}: {reason}") from None


def load_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A dense or upcycled model in evaluation mode on the CPU. Raises CheckpointError when it is not whole."""
    with CheckpointReader(directory) as reader:
        dense_config = dense_config_of(reader)
        if not is_moe(directory):
            return _load_dense(directory, dense_config, dtype)
        upcycle = upcycle_config_of(directory)
        check_tensors(reader, dense_config, upcycle)
        model = empty_moe(dense_config, upcycle, dtype)
        _fill(model, reader)
    if (directory / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(directory)
        except Exception as error:  # as for the tokenizer
            raise CheckpointError(f"generation_config.json of {str(directory)!r} cannot be used: {_reason(error)}") from None
    return model.eval()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory. Raises CheckpointError when it has none, or one that does not work."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        tokenizer("x")  # some values in its files only show when it is used
        return tokenizer
    except Exception as error:  # transformers raises a different kind for every way in which files can be missing
        raise CheckpointError(f"{str(directory)!r} has no tokenizer that can be loaded: {_reason(error)}") from None


def empty_moe(dense_config: dict[str, Any], upcycle: UpcycleConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The family's own transformers class with its FFNs exchanged for MoE blocks; weights are not initialised."""
    family = family_of(dense_config["model_type"])
    config = transformers_config(dense_config)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # part of the initialisation that was left out
    for layer in decoder_layers(model, family):
        setattr(layer, family.mlp, MoeBlock(getattr(layer, family.mlp), family, upcycle))
    return model


def decoder_layers(model: nn.Module, family: Family) -> nn.ModuleList:
    """The decoder layers of a model of this family."""
    return model.get_submodule(family.layers)  # type: ignore[return-value]


def moe_blocks(model: nn.Module) -> list[MoeBlock]:
    """The MoE blocks of a model in order of depth; empty for a dense model."""
    return [module for module in model.modules() if isinstance(module, MoeBlock)]


def check_layers(reader: CheckpointReader, family: Family, num_layers: int) -> None:
    """Raise CheckpointError when the tensors are those of fewer or more layers than the config says. Where no layer is
    found at all, its names are others (``check_dense`` has the reason)."""
    stored = {
        int(name.removeprefix(f"{family.layers}.").split(".")[0])
        for name in reader.names() if name.startswith(f"{family.layers}.")}
    if stored and stored != set(range(num_layers)):
        raise CheckpointError(
            f"{str(reader.directory)!r} holds the tensors of {len(stored)} layers, its config says {num_layers}: it is not "
            "the checkpoint of its config.")


def save_moe_config(directory: Path, dense_config: dict[str, Any], upcycle: UpcycleConfig) -> None:
    """Write the config.json of an upcycled directory."""
    content = {"model_type": MOE_MODEL_TYPE, "dense_config": dense_config, "upcycle": upcycle.model_dump()}
    (directory / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def save_moe(model: PreTrainedModel, directory: Path, dense_config: dict[str, Any], upcycle: UpcycleConfig) -> None:
    """Write an upcycled model's weights and configuration, with every expert written out. ``dense_config`` is the one that
    the model was made of."""
    family = family_of(dense_config["model_type"])
    seen: dict[int, str] = {}
    plans = []
    for name, tensor in model.state_dict().items():
        if seen.setdefault(tensor.data_ptr(), name) == name:  # tied weights are stored once
            plans.append(TensorPlan(family.stored_name(name), list(tensor.shape), tensor.dtype, partial(list, [tensor])))
    write_checkpoint(directory, plans)
    save_moe_config(directory, dense_config, upcycle.model_copy(update={"store_experts": "all"}))


def copy_beside_weights(source: Path, target: Path) -> None:
    """Copy a model directory's other files: tokenizer, chat template, generation defaults, but no weights, no config."""
    for path in model_files(source):
        is_weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
        if not is_weights and path.name not in NOT_BESIDE_WEIGHTS:
            shutil.copyfile(path, target / path.name)


def expanded(reader: CheckpointReader, family: Family, mlp: str, name: str) -> torch.Tensor:
    """One stacked expert tensor's single copy, made from the dense FFN's own tensors (experts stored once)."""
    sources = family.expert_sources(has_bias=True)[name]
    return torch.cat([reader.get(f"{mlp}.{source}") for source in sources], dim=0)


def _load_dense(directory: Path, dense_config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    config = transformers_config(dense_config)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # as for the tokenizer
        raise CheckpointError(f"{str(directory)!r} cannot be loaded: {_reason(error)}") from None
    if report["mismatched_keys"]:
        raise CheckpointError(f"{str(directory)!r} has tensors of other shapes than its config says.")
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{str(directory)!r} lacks {len(missing)} tensors, {missing[0]!r} among them: it is not the checkpoint of its "
            "config.")
    return model.eval()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def check_tensors(reader: CheckpointReader, dense_config: dict[str, Any], upcycle: UpcycleConfig) -> None:
    """Raise CheckpointError unless an upcycled checkpoint has every tensor of its config, in the shape that this says.
    No memory is used for it."""
    with torch.device("meta"):
        model = empty_moe(dense_config, upcycle, torch.float32)
    family, seen = family_of(model.config.model_type), set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if id(parameter) in seen:
            continue  # tied: stored under its first name
        seen.add(id(parameter))
        shape, found = list(parameter.shape), _stored_shape(reader, family, name)
        if found not in (shape, shape[1:] if ".experts." in name else shape):
            raise CheckpointError(f"Tensor {family.stored_name(name)!r} has shape {found}, the config says {shape}.")


def _stored_shape(reader: CheckpointReader, family: Family, name: str) -> list[int]:
    stored = family.stored_name(name)
    mlp, _, inner = name.rpartition(f".{family.mlp}.")
    if stored not in reader and inner.startswith("experts."):
        sources = family.expert_sources(has_bias=True)[inner.removeprefix("experts.")]
        shapes = [reader.shape(f"{mlp}.{family.mlp}.{source}") for source in sources]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if all(shapes) else []
    if stored not in reader and inner.startswith("shared_expert."):
        return reader.shape(f"{mlp}.{family.mlp}.{inner.removeprefix('shared_expert.')}")
    return reader.shape(stored)


@torch.no_grad()
def _fill(model: PreTrainedModel, reader: CheckpointReader) -> None:
    """Copy every parameter and buffer from the checkpoint, one tensor at a time."""
    family = family_of(model.config.model_type)
    filled = set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if parameter.data_ptr() in filled:
            continue  # tied: filled under its first name
        stored = family.stored_name(name)
        mlp, _, inner = name.rpartition(f".{family.mlp}.")
        if stored in reader:
            source = reader.get(stored)
        elif inner.startswith("experts."):
            source = expanded(reader, family, f"{mlp}.{family.mlp}", inner.removeprefix("experts."))
        elif inner.startswith("shared_expert."):
            source = reader.get(f"{mlp}.{family.mlp}.{inner.removeprefix('shared_expert.')}")
        else:
            source = reader.get(stored)  # which raises, and says what is missing
        parameter.copy_(source)  # an expanded tensor is broadcast over the experts
        filled.add(parameter.data_ptr())
