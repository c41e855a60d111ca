"""Locate the tensors of a checkpoint: the files that hold its weights, the index of its shards, and the header of each.
This module does not import torch.

Every reader takes the files that ``weight_files`` names, and it refuses a directory in which other tools (transformers, vLLM)
could take different ones.
"""

import math
import re
from pathlib import Path
from typing import Any

from xft_core.errors import CheckpointError
from xft_core.files.disk import relative_path
from xft_core.files.parsing import parse_json

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
HEADS = ("lm_head.weight", "embed_out.weight")  # ends of names
EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")
LARGEST_HEADER = 100_000_000  # the limit of the safetensors format


def weight_files(directory: Path) -> list[str]:
    """Names of the files that hold a model's weights, sorted: model.safetensors, or the shards of its index.

    Other weights in the directory (variants such as model.fp16.safetensors, consolidated.safetensors, pytorch_model.bin) are
    never read. Raises CheckpointError if there are none, or if it is ambiguous which ones count.
    """
    _check_unambiguous(directory)
    has_single, has_index = ((directory / name).is_file() for name in (SINGLE_NAME, INDEX_NAME))
    shards = sorted(set(read_index(directory / INDEX_NAME).values())) if has_index else []
    if has_single and has_index and shards != [SINGLE_NAME]:
        raise CheckpointError(
            f"{str(directory)!r} holds two models: {SINGLE_NAME}, and {INDEX_NAME} with {len(shards)} shards "
            f"({', '.join(shards[:2])}{', ...' if len(shards) > 2 else ''}). Some programs read the former, some the latter. "
            f"Delete {SINGLE_NAME} to keep the shards, or {INDEX_NAME} and the shards to keep {SINGLE_NAME}.")
    if has_single or has_index:
        return [SINGLE_NAME] if has_single else shards
    others = sorted(path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    found = ", ".join(others[:3])
    if any(name.endswith(".safetensors") for name in others):
        hint = f" It has {found}, which no program reads on its own: rename or convert the file you mean."
    else:
        hint = f" It has {found}: pickled weights are not read, convert them to safetensors first." if found else ""
    raise CheckpointError(f"{str(directory)!r} has neither {SINGLE_NAME} nor {INDEX_NAME}.{hint}")


def _check_unambiguous(directory: Path) -> None:
    """Raise CheckpointError if transformers would read other weights than those of these names, or change them afterwards."""
    if (directory / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{str(directory)!r} is an adapter (adapter_config.json). Merge it into its model first, or delete "
            "adapter_config.json to use the model without it.")
    if parts := sorted(path.name for path in directory.iterdir() if DISTRIBUTED_SHARD.fullmatch(path.name)):
        raise CheckpointError(
            f"{str(directory)!r} holds a distributed checkpoint ({parts[0]}), which transformers reads instead of "
            f"{SINGLE_NAME}. Save the model again with save_pretrained, or delete those files.")
    try:
        config = parse_json((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # the reader of the config reports it
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    if named is not None:
        raise CheckpointError(
            f"config.json of {str(directory)!r} names other weights (transformers_weights: {named!r}), which only transformers "
            f"reads. Name that file {SINGLE_NAME} and remove the field.")


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard of an index file. Raises CheckpointError unless it names safetensors files in its directory."""
    try:
        weight_map = parse_json(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, dict) or not all(map(_is_shard_name, weight_map.values())):
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint index: it must name a .safetensors file in its directory for every tensor.")
    return weight_map


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The header of a safetensors file, and where its data begins: 8 bytes of length (little-endian), then JSON, then data.

    Raises CheckpointError for a file that is missing, truncated or of another form.
    """
    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is missing, but {INDEX_NAME} names it. Copy or download it again.")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = parse_json(stream.read(length) if length <= LARGEST_HEADER else b"")
            header.pop("__metadata__", None)
            expected = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
            for tensor in header.values():
                math.prod(map(int, tensor["shape"])), tensor["dtype"].isalnum()
        except (ValueError, TypeError, KeyError, LookupError, AttributeError, ArithmeticError):
            raise CheckpointError(f"{str(path)!r} is not a safetensors file: its header cannot be read.") from None
    if path.stat().st_size < expected:
        raise CheckpointError(
            f"{str(path)!r} is truncated: {path.stat().st_size:,} bytes instead of {expected:,}. "
            "Copy or download it again.")
    return header, 8 + length


def _is_shard_name(name: Any) -> bool:
    """Whether an index may name this file: a safetensors file in the same directory."""
    try:
        return isinstance(name, str) and "/" not in relative_path(name) and name.endswith(".safetensors")
    except ValueError:
        return False
