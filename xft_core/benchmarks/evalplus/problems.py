"""The problems of a benchmark, from a file in EvalPlus form (HumanEval+, MBPP+, or your own in the same form).

One JSON object per line, plain or gzip, with these fields (others are allowed and ignored):

    task_id              unique name. ``HumanEval/…`` and ``Mbpp/…`` get evalplus's special rules for these two sets
    prompt               Python up to where the answer begins: imports, signature, docstring
    entry_point          name of the function that is called
    canonical_solution   code that completes the prompt to a right program
    base_input           list of argument lists, for the base score
    plus_input           further argument lists; for the plus score, both lists must pass
    atol                 absolute tolerance for numbers; 0 if left out
"""

import json
from dataclasses import dataclass
from typing import Any

from xft_core.errors import DataError

# The files that evalplus released, by the sha256 of their content. A file with any other content is another benchmark.
RELEASES = {
    "42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f": "HumanEval+ v0.1.10",
    "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad": "MBPP+ v0.2.0",
}
TEXT_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution")


@dataclass(frozen=True)
class Problem:
    """One problem; the fields are those of the file."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    base_input: list[list[Any]]
    plus_input: list[list[Any]]
    atol: float = 0


def parse_problem(row: dict[str, Any], where: str) -> Problem:
    """Parse one row into a problem. Raises a DataError that begins with ``where`` and names the wrong field."""
    for name in (*TEXT_FIELDS, "base_input", "plus_input"):
        if name not in row:
            raise DataError(
                f"{where}: the field {name!r} is missing (there are: {', '.join(row) or 'none'}). "
                "A problem in EvalPlus form needs it.")
    for name in TEXT_FIELDS:
        if not isinstance(row[name], str) or (not row[name].strip() and name != "canonical_solution"):
            raise DataError(f"{where}: {name} is {_shown(row[name])}; it must be a non-empty text.")
    if not row["entry_point"].isidentifier():
        raise DataError(f"{where}: entry_point is {_shown(row['entry_point'])}; it must be a function's name.")
    atol = row.get("atol", 0)
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not atol >= 0:
        raise DataError(f"{where}: atol is {_shown(atol)}; it must be a number, 0 or more.")
    base_input, plus_input = (_inputs(row[name], name, where) for name in ("base_input", "plus_input"))
    if not base_input:
        raise DataError(f"{where}: base_input is empty; a problem needs at least one list of arguments.")
    texts = {name: row[name] for name in TEXT_FIELDS}
    return Problem(**texts, base_input=base_input, plus_input=plus_input, atol=atol)


def _inputs(value: Any, name: str, where: str) -> list[list[Any]]:
    if value == {}:  # MBPP+ v0.2.0 writes "no further inputs" like this, once
        return []
    if not isinstance(value, list) or not all(isinstance(arguments, list) for arguments in value):
        raise DataError(
            f"{where}: {name} is {_shown(value)}; it must be a list of argument lists, like [[1, 2], [3, 4]].")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
