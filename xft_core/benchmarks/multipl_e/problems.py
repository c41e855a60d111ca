"""The problems of a benchmark, from a file in MultiPL-E form (one language a file).

One JSON object a line, plain or gzip, with these fields (more are allowed and ignored):

    name          unique name, the task_id of its samples: HumanEval_23_strlen
    language      js, ts, java, cpp, rs, go_test.go, php, rb, lua, pl or sh
    prompt        code up to where the function's body begins
    tests         code that follows the body and ends with another status than 0 when the answer is wrong. In cpp, java,
                  rs and sh it begins with the brace that closes the function; elsewhere the answer closes it
    stop_tokens   texts at which a completion ends; they are no part of it
"""

import json
from dataclasses import dataclass
from typing import Any

from xft_core.benchmarks.multipl_e.languages import LANGUAGES, Language
from xft_core.errors import DataError

FIELDS = ("name", "language", "prompt", "tests", "stop_tokens")


@dataclass(frozen=True)
class Problem:
    """One problem; the fields are those of the file, but for the names of the first two."""

    task_id: str
    language: Language
    prompt: str
    tests: str
    stop_tokens: tuple[str, ...]


def parse_problem(row: dict[str, Any], where: str) -> Problem:
    """One row as a problem. Raises DataError that begins with ``where`` and names the wrong field."""
    for name in FIELDS:
        if name not in row:
            raise DataError(
                f"{where}: the field {name!r} is missing (there are: {', '.join(row) or 'none'}). "
                "A problem in MultiPL-E form needs it.")
        if name != "stop_tokens" and not (isinstance(row[name], str) and row[name].strip()):
            raise DataError(f"{where}: {name} is {json.dumps(row[name])[:60]}; it must be a text that is not empty.")
    stops = row["stop_tokens"]
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise DataError(f"{where}: stop_tokens is {json.dumps(stops)[:60]}; it must be a list of texts, none empty.")
    language = LANGUAGES.get(row["language"])
    if language is None:
        raise DataError(
            f"{where}: language is {row['language']!r}, which is not known here. Known: {', '.join(LANGUAGES)}.")
    return Problem(row["name"], language, row["prompt"], row["tests"], tuple(stops))
