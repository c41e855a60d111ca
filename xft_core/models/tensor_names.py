"""A source checkpoint's tensor names, kept with an upcycled model whose family has several naming conventions in files.

Vision-language checkpoints use other names in files than transformers uses in memory, by a rule that changed between its
versions. An upcycled directory uses the names in memory. Its file tensor_names.json maps them to the names of the dense source,
so that the merged model gets the source's names.
"""

import json
from dataclasses import replace
from pathlib import Path

from xft_core.errors import CheckpointError
from xft_core.files.parsing import parse_json
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan

NAME = "tensor_names.json"


def save_tensor_names(reader: CheckpointReader, directory: Path) -> None:
    """Write the file: for each tensor of ``reader`` with another name in the source's files, that name."""
    renamed = {name: reader.name_in_file(name) for name in reader.names() if reader.name_in_file(name) != name}
    (directory / NAME).write_text(json.dumps(renamed, indent=1), encoding="utf-8")


def with_tensor_names(plans: list[TensorPlan], directory: Path) -> list[TensorPlan]:
    """``plans`` under the names of the source of the upcycled ``directory``; unchanged if there is no such file.

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
