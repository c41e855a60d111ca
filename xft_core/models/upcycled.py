"""Upcycled models in memory and on disk: the dense family's class with Mixture-of-Experts blocks."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from xft_core.errors import CheckpointError
from xft_core.families import Family
from xft_core.models.classes import auto_class
from xft_core.models.config import decoder_layers, save_moe_config, transformers_config
from xft_core.models.discovery import family_of
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, write_checkpoint
from xft_core.moe.assignment import ForwardInputs
from xft_core.moe.experts import MoeBlock
from xft_core.moe.placement import place_block
from xft_core.recipe.sections import UpcycleConfig

# Modules that hold the dense FFN's own tensors in a MoE block. If stored once, these have their dense names.
HOLDERS = ("shared_expert.", "base.")


def empty_moe(dense_config: dict[str, Any], upcycle: UpcycleConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The family's own transformers class with MoE blocks in place of its FFNs; weights are not initialised."""
    config = transformers_config(dense_config)
    family = family_of(config)
    with no_init_weights():
        model = auto_class(config).from_config(config, dtype=dtype)
    model.tie_weights()  # part of the initialisation that was skipped
    for layer in decoder_layers(model, family):
        place_block(layer, family, upcycle)
    if upcycle.router in ("hashed", "by_example"):
        inputs = ForwardInputs()
        inputs.watch(model, by_example=upcycle.router == "by_example")
        for block in moe_blocks(model):
            block.router.inputs = inputs
    return model


def freeze_all_but_language(model: PreTrainedModel) -> None:
    """Freeze the vision tower and the projector of a model that reads pictures, whatever is trained."""
    family = family_of(model.config)
    if family.reads_pictures:
        language = model.get_submodule(family.layers.rpartition(".")[0])
        trained = {id(parameter) for module in (language, model.get_output_embeddings()) for parameter in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)


def moe_blocks(model: nn.Module) -> list[MoeBlock]:
    """The MoE blocks of a model in order of depth; empty for a dense model."""
    return [module for module in model.modules() if isinstance(module, MoeBlock)]


def add_stored_bias(model: PreTrainedModel, reader: CheckpointReader) -> None:
    """Give the routers of ``model`` a bias (see moe/router.py) if the checkpoint has one, which no config says."""
    family = family_of(model.config)
    for layer, block in enumerate(moe_blocks(model)):
        if f"{family.block_name(layer)}.router.balance_bias" in reader:
            block.router.add_balance_bias()


def save_moe(model: PreTrainedModel, directory: Path, dense_config: dict[str, Any], upcycle: UpcycleConfig) -> None:
    """Write an upcycled model's weights and configuration, with every expert written out. ``dense_config``: the one that the
    model was created from."""
    family = family_of(model.config)
    seen: dict[int, str] = {}
    plans = []
    for name, tensor in model.state_dict().items():
        if seen.setdefault(tensor.data_ptr(), name) == name:  # tied weights are stored once
            plans.append(TensorPlan(family.stored_name(name), list(tensor.shape), tensor.dtype, partial(list, [tensor])))
    write_checkpoint(directory, plans)
    save_moe_config(directory, dense_config, upcycle.model_copy(update={"store_experts": "all"}))


def expanded(reader: CheckpointReader, family: Family, mlp: str, name: str) -> torch.Tensor:
    """One stacked expert tensor's single copy, made from the dense FFN's own tensors (experts stored once)."""
    sources = family.expert_sources(has_bias=True)[name]
    return torch.cat([reader.get(f"{mlp}.{source}") for source in sources], dim=0)


def check_tensors(reader: CheckpointReader, dense_config: dict[str, Any], upcycle: UpcycleConfig) -> None:
    """Raise CheckpointError unless an upcycled checkpoint has every tensor of its config, in the config's shape. Uses no memory
    for the tensors."""
    with torch.device("meta"):
        model = empty_moe(dense_config, upcycle, torch.float32)
    family, seen = family_of(model.config), set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if id(parameter) in seen:
            continue  # tied: stored under its first name
        seen.add(id(parameter))
        shape, found = list(parameter.shape), _stored_shape(reader, family, name, upcycle)
        stored_once = ".experts." in name and upcycle.expert_rank is None
        if found not in (shape, shape[1:] if stored_once else shape):
            raise CheckpointError(f"Tensor {family.stored_name(name)!r} has shape {found}, but the config says {shape}.")


def _stored_shape(reader: CheckpointReader, family: Family, name: str, upcycle: UpcycleConfig) -> list[int]:
    stored = family.stored_name(name)
    mlp, inner = family.within_block(name) or ("", "")
    if stored not in reader and inner.startswith("experts.") and upcycle.expert_rank is None:
        sources = family.expert_sources(has_bias=True)[inner.removeprefix("experts.")]
        shapes = [reader.shape(f"{mlp}.{source}") for source in sources]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if all(shapes) else []
    if stored not in reader and inner.startswith(HOLDERS):
        return reader.shape(f"{mlp}.{inner.partition('.')[2]}")
    return reader.shape(stored)


@torch.no_grad()
def fill(model: PreTrainedModel, reader: CheckpointReader) -> None:
    """Copy every parameter and buffer from the checkpoint, one tensor at a time."""
    family = family_of(model.config)
    filled = set()
    for name, parameter in model.state_dict(keep_vars=True).items():
        if parameter.data_ptr() in filled:
            continue  # tied: filled under its first name
        stored = family.stored_name(name)
        mlp, inner = family.within_block(name) or ("", "")
        if stored in reader:
            source = reader.get(stored)
        elif inner.startswith("experts.") and inner.removeprefix("experts.") in family.expert_sources(has_bias=True):
            source = expanded(reader, family, mlp, inner.removeprefix("experts."))
        elif inner.startswith(HOLDERS):
            source = reader.get(f"{mlp}.{inner.partition('.')[2]}")
        else:
            source = reader.get(stored)  # raises CheckpointError with the missing name
        parameter.copy_(source)  # an expanded tensor is broadcast over the experts
        filled.add(parameter.data_ptr())
