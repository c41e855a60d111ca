"""The problems of a benchmark, from a file in EvalPlus form (HumanEval+, MBPP+, or one's own in the same form).

One JSON object a line, plain or gzip, with these fields (more are allowed and ignored):

    task_id              unique name. ``HumanEval/…`` and ``Mbpp/…`` get evalplus's special rules for these two sets
    prompt               Python up to where the answer begins: imports, signature, docstring
    entry_point          name of the function that is called
    canonical_solution   what completes the prompt to a right program
    base_input           list of argument lists; what the base score is about
    plus_input           further argument lists; the plus score needs both to pass
    atol                 absolute tolerance for numbers; 0 if left out
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xft_core.errors import DataError

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


def load_problems(path: Path, max_problems: int | None = None) -> list[Problem]:
    """The problems of a benchmark file, in its order; only the first ``max_problems`` if given.

    Raises DataError, naming file and line, for a broken line, a missing or wrong field, or a task_id that occurs twice,
    and for a file without problems. The whole file is checked, whatever ``max_problems`` is.
    """
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, row in read_jsonl(path):
        problem = _problem(row, where=f"{str(path)!r}, line {number}")
        if problem.task_id in lines:
            raise DataError(
                f"{str(path)!r}, line {number}: task_id {problem.task_id!r} was already used in line "
                f"{lines[problem.task_id]}. Every problem needs its own: rename or remove one of the two.")
        lines[problem.task_id] = number
        problems.append(problem)
    if not problems:
        raise DataError(f"{str(path)!r} holds no problems: it is empty. Give a file with one JSON problem a line.")
    return problems[:max_problems]


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank, of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises DataError, naming file and line, for what is not a JSON object, not UTF-8 or not gzip.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _object(line, where=f"{str(path)!r}, line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{str(path)!r} cannot be unpacked after line {number}: {error}. It is cut short or not gzip: "
            "fetch it again.") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: this is not JSON ({error.msg} at character {error.pos + 1}). Mend or remove the line.") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{where}: this cannot be read ({error}). Mend or remove the line.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: this is a JSON {type(value).__name__} instead of an object {{...}}. Mend the line.")
    return value


def _problem(row: dict[str, Any], where: str) -> Problem:
    for name in (*TEXT_FIELDS, "base_input", "plus_input"):
        if name not in row:
            raise DataError(
                f"{where}: the field {name!r} is missing (there are: {', '.join(row) or 'none'}). "
                "A problem in EvalPlus form needs it.")
    for name in TEXT_FIELDS:
        if not isinstance(row[name], str) or (not row[name].strip() and name != "canonical_solution"):
            raise DataError(f"{where}: {name} is {_shown(row[name])}; it must be a text that is not empty.")
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
