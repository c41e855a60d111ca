"""The stored form of a dense model: the names of its tensors, and whether its head is stored separately.

transformers resolves both while it loads a model. A reader that takes tensors by name must resolve them in the same way, or it
reads another model than transformers loads. This module does it once, for every reader.
"""

import logging
from collections.abc import Collection
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from xft_core.errors import CheckpointError
from xft_core.families import Family
from xft_core.models.classes import auto_class
from xft_core.models.discovery import family_of
from xft_core.models.safetensors_io import CheckpointReader

logger = logging.getLogger(__name__)

# Prefixes of a vision-language model's tensor names in files and in memory. The first that gives a known name counts.
PICTURE_PREFIXES = (
    ("language_model.lm_head.", "lm_head."), ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."), ("vision_tower.vision_model.", "model.vision_tower."),
    ("vision_tower.", "model.vision_tower."), ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."), ("visual.", "model.visual."),
    ("model.", "model.language_model."))
# Prefixes that torch.compile, DDP, FSDP and PEFT add to the names of the wrapped model.
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model.")


def shape_only(config: PreTrainedConfig) -> PreTrainedModel:
    """The dense model of a configuration, without memory for its weights."""
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = auto_class(config).from_config(config)
    return model


def use_names_of_model(reader: CheckpointReader, model: PreTrainedModel) -> None:
    """Give the tensors of a dense checkpoint the names of the family's own checkpoints, by transformers' rule: the name of
    the inner model (``model.``) may be missing, or may be there once too often.

    Raises CheckpointError if two tensors would then have the same name.
    """
    family, known, prefix = family_of(model.config), model.state_dict().keys(), f"{model.base_model_prefix}."
    stored_as: dict[str, str] = {}
    for stored in reader.names():
        name = _name_in_memory(stored, family)
        if family.reads_pictures:
            name = _name_of_picture_model(stored, known)
        elif name.startswith(prefix) and name.removeprefix(prefix) in known:
            name = name.removeprefix(prefix)
        elif prefix + name in known:
            name = prefix + name
        name = family.stored_name(name)
        if name in stored_as:
            raise CheckpointError(
                f"{str(reader.directory)!r} holds {name!r} twice, as {stored_as[name]!r} and as {stored!r}. Programs differ in "
                "which one they read: save the model again.")
        stored_as[name] = stored
    reader.rename({stored: name for name, stored in stored_as.items()})


def check_dense(reader: CheckpointReader, model: PreTrainedModel) -> None:
    """Raise CheckpointError unless a dense checkpoint, under the names of the model, has every tensor of its config, in the
    config's shape."""
    family = family_of(model.config)
    shapes = {family.stored_name(name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    if _says_tied(model):
        pair = head_and_embedding(model)
        if any(name in reader for name in pair):  # one of them is enough
            shapes = {name: shape for name, shape in shapes.items() if name not in pair or name in reader}
    if missing := sorted(name for name in shapes if name not in reader):
        wrapper = next((item for item in WRAPPERS if any(name.startswith(item) for name in reader.names())), None)
        reason = "it is not the checkpoint of its config." if wrapper is None else (
            f"its names begin with {wrapper!r}, which comes from a wrapper around the model. Save the inner model with "
            "save_pretrained.")
        raise CheckpointError(
            f"{str(reader.directory)!r} lacks {len(missing)} tensors, including {missing[0]!r}: {reason}")
    for name, shape in shapes.items():
        if reader.shape(name) != shape:
            raise CheckpointError(
                f"{str(reader.directory)!r} has tensors whose shapes differ from its config: {name!r} has shape "
                f"{reader.shape(name)}, but the config says {shape}.")


def is_tied(reader: CheckpointReader, model: PreTrainedModel) -> bool:
    """Whether the head is the embedding. It is if the config says so, unless both are stored and differ: then, as in
    transformers, the head is separate. A tied model may store either one."""
    head, embedding = head_and_embedding(model)
    if not _says_tied(model) or head not in reader or embedding not in reader:
        return _says_tied(model)
    if reader.shape(head) == reader.shape(embedding) and torch.equal(reader.get(head), reader.get(embedding)):
        return True
    logger.warning(
        "%r sets tie_word_embeddings in its config.json, but has a head (%s) that differs from its embedding. The head is "
        "used: tie_word_embeddings counts as false.", str(reader.directory), head)
    return False


def with_tying(dense_config: dict[str, Any], model: PreTrainedModel, tied: bool) -> dict[str, Any]:
    """``dense_config``, with tie_word_embeddings changed only if it differs from ``tied``. ``model``: built from it."""
    return dense_config if _says_tied(model) == tied else dense_config | {"tie_word_embeddings": tied}


def head_and_embedding(model: PreTrainedModel) -> tuple[str, str]:
    """Names of the head's and the embedding's weight in the family's checkpoints."""
    family = family_of(model.config)
    names = {id(module): name for name, module in model.named_modules()}
    head, embedding = names[id(model.get_output_embeddings())], names[id(model.get_input_embeddings())]
    return family.stored_name(f"{head}.weight"), family.stored_name(f"{embedding}.weight")


def _says_tied(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "tie_word_embeddings", False))


def _name_of_picture_model(stored: str, known: Collection[str]) -> str:
    """The name in memory of a tensor of a vision-language checkpoint; ``stored`` if none is known."""
    if stored in known:
        return stored
    candidates = (memory + stored.removeprefix(files) for files, memory in PICTURE_PREFIXES if stored.startswith(files))
    return next((name for name in candidates if name in known), stored)


def _name_in_memory(stored: str, family: Family) -> str:
    for in_memory, in_files in family.renamed:
        if stored.startswith(f"{in_files}."):
            return in_memory + stored.removeprefix(in_files)
    return stored
