"""State of optimizers and schedulers on disk: tensors as safetensors, the rest as JSON.

Such state is nested dictionaries, lists, tuples, numbers and tensors. torch.save would pickle it, and a pickle can run code
when it is read, while checkpoints come back from an object store that others may write to.

    <name>.safetensors    the tensors, named by number
    <name>.json           the rest; ``{"tensor": 3}`` stands for a tensor, tuples and dictionaries are marked as such
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xft_core.errors import CheckpointError
from xft_core.files.parsing import parse_json

DEEPEST = 16  # levels of nesting; an optimizer's state has four


def save_state(directory: Path, name: str, state: Any) -> None:
    """Write ``state``. Raises TypeError for values other than tensors, numbers, texts, None and containers of these."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encoded(state, tensors))
    save_file(tensors, directory / f"{name}.safetensors")
    (directory / f"{name}.json").write_text(text, encoding="utf-8")


def load_state(directory: Path, name: str) -> Any:
    """Read the state that ``save_state`` wrote, tensors on the CPU. Raises CheckpointError if it is missing or malformed."""
    try:
        content = parse_json((directory / f"{name}.json").read_bytes())
        return _decoded(content, load_file(directory / f"{name}.safetensors"), DEEPEST)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        raise CheckpointError(f"{str(directory / name)!r} holds no state to resume from. Remove {str(directory)!r}.") from None


def _encoded(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = value.detach().contiguous()
        return {"tensor": len(tensors) - 1}
    if isinstance(value, list):
        return [_encoded(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, tensors) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, int | str) for key in value):
        return {"dict": [[key, _encoded(item, tensors)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__name__} cannot be written as state")


def _decoded(value: Any, tensors: dict[str, torch.Tensor], deepest: int) -> Any:
    if deepest == 0:
        raise ValueError("too deep")
    if isinstance(value, list):
        return [_decoded(item, tensors, deepest - 1) for item in value]
    if isinstance(value, dict):
        (kind, content), = value.items()
        if kind == "tensor":
            return tensors[str(content)]
        items = [_decoded(item, tensors, deepest - 1) for item in content]
        return {"tuple": tuple, "dict": dict}[kind](items)
    return value
