"""A task's folder as a kind of benchmark."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind
from xft_core.benchmarks.prompts import cut, instruction_prompt
from xft_core.benchmarks.tasks.folder import grader_source, load_task, problem_file
from xft_core.errors import DataError
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText

TABLES = {".csv": ",", ".tsv": "\t"}
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One row of a task. ``row``: all its fields, which the judge gets."""

    task_id: str
    row: dict[str, Any]


class TaskFolder(Kind[Problem]):
    """See folder.py for the form, graders/ for what grades it, grading.py for verdicts."""

    name = "task"
    fields = frozenset({"task_id"})
    unused_settings = frozenset({"min_time_limit", "time_limit_factor"})

    def __init__(self, folder: Path) -> None:
        """Raises DataError for a folder that is not a task."""
        self._folder, self._task = folder, load_task(folder)
        self.extended_tests = self._task.extended  # type: ignore[misc]  # of this task, not of the kind

    def load_problems(self, path: Path, max_problems: int | None = None) -> list[Problem]:
        """See Kind. ``path``: the folder."""
        return super().load_problems(problem_file(path), max_problems)

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """See Kind. The first line of a table names its fields; a row without a task_id is named after its line."""
        read = table_rows(path) if path.suffix in TABLES else read_jsonl(path)
        for number, row in read:
            yield number, {"task_id": f"{path.stem}/{number}", **row}

    def problem(self, row: dict[str, Any], where: str) -> Problem:
        """See Kind."""
        for name in ("task_id", *self._task.needed):
            if name not in row:
                raise DataError(
                    f"{where}: the field {name!r} is missing (there are: {', '.join(row) or 'none'}). Every row of this task "
                    "needs it, because task.yaml names it.")
        if not isinstance(row["task_id"], str) or not row["task_id"].strip():
            raise DataError(f"{where}: task_id is {json.dumps(row['task_id'])[:60]}; it must be a non-empty text.")
        return Problem(row["task_id"], row)

    def build_prompt(self, problem: Problem, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind."""
        return instruction_prompt(
            self._filled(self._task.prompt, problem), self._filled(self._task.completion_prompt, problem), style, tokenizer)

    def stops(self, problems: Sequence[Problem], style: str) -> tuple[str, ...]:
        """See Kind. A tuned model ends its answer itself."""
        return tuple(self._task.completion_stops) if style == "completion" else ()

    def solution(self, problem: Problem, completion: str, style: str) -> str:
        """See Kind. The answer, or the content of its fence if the task takes that."""
        text = cut(completion, self.stops([problem], style))
        fenced = _FENCED.search(text) if self._task.take == "fence" else None
        return fenced[1] if fenced else text.strip()

    def texts(self, problem: Problem) -> tuple[str, str]:
        """See Kind."""
        return self._filled(self._task.prompt, problem), self.reference(problem)

    def reference(self, problem: Problem) -> str:
        """The right answer."""
        return self._filled(self._task.response, problem)

    def versions(self, benchmark: Path, config: EvaluateConfig) -> dict[str, str | None]:
        """See Kind. The grader, which may be outside the folder."""
        return {"grader": hashlib.sha256(grader_source(benchmark).encode()).hexdigest()[:16]}

    def groups(self, problem: Problem) -> dict[str, str]:
        """See Kind."""
        return {name: str(problem.row[name]) for name in self._task.group_by}

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Problem]:
        """See Kind."""
        from xft_core.benchmarks.tasks.grading import TaskGrader

        hidden = [path for path in benchmark.rglob("*") if path.is_file()]
        first = self.load_problems(benchmark, 1)[0]
        return TaskGrader(
            config, grader_source(benchmark), self._task.secret, self._task.seconds, hidden, first, self.reference(first))

    def _filled(self, template: str, problem: Problem) -> str:
        return self._task.template_fields.sub(lambda found: _text(problem.row[found[1]]), template)


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) for each row of a table of texts (CSV or TSV, UTF-8). Raises DataError for a row that does not have as many
    fields as the first line, and for a file that is not text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=TABLES[path.suffix], strict=True)
            names = next(reader, [])
            for values in reader:
                if len(values) != len(names):
                    raise DataError(
                        f"{str(path)!r}, line {reader.line_num}: {len(values)} fields, but the first line names {len(names)}. "
                        "Put quotes around a field with a comma or a line break in it.")
                yield reader.line_num, dict(zip(names, values, strict=True))
    except (OSError, csv.Error, UnicodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}.") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
