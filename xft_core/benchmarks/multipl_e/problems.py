"""The problems of a benchmark, from a file in MultiPL-E form (one language a file).

One JSON object per line, plain or gzip, with these fields (others are allowed and ignored):

    name          unique name, the task_id of its samples: HumanEval_23_strlen
    language      js, ts, java, cpp, rs, swift, go_test.go, php, rb, lua, pl or sh
    prompt        code up to where the function's body begins
    tests         code that follows the body and exits with a status other than 0 if the answer is wrong. In cpp, java, rs,
                  swift and sh it begins with the brace that closes the function; in the others the answer closes it
    stop_tokens   texts at which a completion ends; they are not part of it
"""

import json
from dataclasses import dataclass
from typing import Any

from xft_core.benchmarks.multipl_e.languages import LANGUAGES, Language
from xft_core.errors import DataError

FIELDS = ("name", "language", "prompt", "tests", "stop_tokens")


@dataclass(frozen=True)
class Problem:
    """One problem with the fields of the file; ``task_id`` is its ``name``, ``language`` the Language with that name."""

    task_id: str
    language: Language
    prompt: str
    tests: str
    stop_tokens: tuple[str, ...]


def parse_problem(row: dict[str, Any], where: str) -> Problem:
    """Parse one row into a problem. Raises a DataError that begins with ``where`` and names the wrong field."""
    for name in FIELDS:
        if name not in row:
            raise DataError(
                f"{where}: the field {name!r} is missing (there are: {', '.join(row) or 'none'}). "
                "A problem in MultiPL-E form needs it.")
        if name != "stop_tokens" and not (isinstance(row[name], str) and row[name].strip()):
            raise DataError(f"{where}: {name} is {json.dumps(row[name])[:60]}; it must be a non-empty text.")
    stops = row["stop_tokens"]
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise DataError(f"{where}: stop_tokens is {json.dumps(stops)[:60]}; it must be a list of non-empty texts.")
    language = LANGUAGES.get(row["language"])
    if language is None:
        raise DataError(
            f"{where}: language is {row['language']!r}, which is unknown. Known: {', '.join(LANGUAGES)}.")
    return Problem(row["name"], language, row["prompt"], row["tests"], tuple(stops))
