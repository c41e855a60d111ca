"""Where the tensors of a checkpoint are: the index of its shards and the header of each. No torch here."""

import math
from pathlib import Path
from typing import Any

from xft_core.artifacts import relative_path
from xft_core.errors import CheckpointError
from xft_core.plain_text import parse_json

INDEX_NAME = "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000  # the limit of the safetensors format


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


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The header of a safetensors file, and where its data begins: 8 bytes of length (little-endian), then JSON, then data.

    Raises CheckpointError for a file that is missing, of another form or cut short.
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
    """Whether an index may name it: a safetensors file in the same directory, nowhere else."""
    try:
        return isinstance(name, str) and "/" not in relative_path(name) and name.endswith(".safetensors")
    except ValueError:
        return False
