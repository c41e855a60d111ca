"""The names of a source checkpoint's tensors, kept beside an upcycled model whose family's files have several conventions.

Vision-language checkpoints are stored under other names than transformers has in memory, by a rule that changed with its
versions. An upcycled directory has the names in memory; the file tensor_names.json says what the dense source called
them, so that the merged model has the source's names.
"""

import json
from dataclasses import replace
from pathlib import Path

from xft_core.errors import CheckpointError
from xft_core.files.parsing import parse_json
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan

NAME = "tensor_names.json"


def save_tensor_names(reader: CheckpointReader, directory: Path) -> None:
    """Write the file: for each tensor of ``reader`` with a name of its own in the source's files, that name."""
    renamed = {name: reader.name_in_file(name) for name in reader.names() if reader.name_in_file(name) != name}
    (directory / NAME).write_text(json.dumps(renamed, indent=1), encoding="utf-8")


def with_tensor_names(plans: list[TensorPlan], directory: Path) -> list[TensorPlan]:
    """``plans`` under the names of the source of the upcycled ``directory``; as they are where there is no such file.

    Raises CheckpointError for a file that is not an object of names.
    """
    path = directory / NAME
    if not path.is_file():
        return plans
    try:
        names = parse_json(path.read_bytes())
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("it is not an object of names")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be used: {error}. Upcycle the dense model again.") from None
    return [replace(plan, name=names.get(plan.name, plan.name)) for plan in plans]
