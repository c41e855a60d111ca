"""The index of a sharded checkpoint: which file beside it holds which tensor. No torch here."""

from pathlib import Path
from typing import Any

from xft_core.artifacts import relative_path
from xft_core.errors import CheckpointError
from xft_core.plain_text import parse_json

INDEX_NAME = "model.safetensors.index.json"


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard of an index file. Raises CheckpointError unless it names safetensors files beside it."""
    try:
        weight_map = parse_json(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, dict) or not all(map(_is_shard_name, weight_map.values())):
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint index: it must name a .safetensors file beside it for every tensor.")
    return weight_map


def _is_shard_name(name: Any) -> bool:
    """Whether an index may name it: a safetensors file in the same directory, nowhere else."""
    try:
        return isinstance(name, str) and "/" not in relative_path(name) and name.endswith(".safetensors")
    except ValueError:
        return False
