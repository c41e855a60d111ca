"""Fields of a problem that is a Python program."""

import json
from typing import Any

from xft_core.benchmarks.tasks.benchmark import Problem
from xft_core.errors import DataError


def program_problem(row: dict[str, Any], texts: tuple[str, ...], where: str, named: str = "task_id") -> Problem:
    """A row as a problem, with all ``texts`` present. Raises a DataError that begins with ``where`` and names the wrong
    field."""
    for name in (named, *texts):
        if not isinstance(row.get(name), str) or not row[name].strip():
            given = f"is {shown(row[name])}" if name in row else f"is missing (there are: {', '.join(row) or 'none'})"
            raise DataError(f"{where}: {name} {given}. Give a text.")
    if "entry_point" in texts and not row["entry_point"].isidentifier():
        raise DataError(f"{where}: entry_point is {shown(row['entry_point'])}; it must be a function's name.")
    return Problem(row[named], row)


def shown(value: Any) -> str:
    """A value in the form that messages quote."""
    return json.dumps(value, ensure_ascii=False)[:80]
