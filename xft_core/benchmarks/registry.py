"""The known kinds of benchmark. A file's first row shows its kind."""

from pathlib import Path
from typing import Any

from xft_core.benchmarks.benchmark import Kind
from xft_core.benchmarks.ds1000.benchmark import DS1000
from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.benchmarks.ifeval.benchmark import IFEval
from xft_core.benchmarks.multipl_e.benchmark import MultiPLE
from xft_core.benchmarks.multiple_choice import MultipleChoice
from xft_core.benchmarks.picture_questions import PictureQuestions
from xft_core.benchmarks.programs.bigcodebench import BigCodeBench
from xft_core.benchmarks.programs.evoeval import EvoEval
from xft_core.benchmarks.programs.livecodebench import LiveCodeBench
from xft_core.benchmarks.tasks.benchmark import TaskFolder
from xft_core.errors import DataError
from xft_core.files.jsonl import read_jsonl

KINDS: tuple[Kind[Any], ...] = (
    EvalPlus(), MultiPLE(), DS1000(), PictureQuestions(), MultipleChoice(), IFEval(), EvoEval(), BigCodeBench(),
    LiveCodeBench())


def kind_of(path: Path) -> Kind[Any]:
    """The kind of a benchmark file or a task's folder. Raises DataError for an empty file, rows of an unknown kind, and a
    directory that is not a task."""
    if path.is_dir():
        return TaskFolder(path)
    first = next(iter(read_jsonl(path)), None)
    if first is None:
        raise DataError(f"{str(path)!r} has no problems: it is empty. Give a file with one JSON problem per line.")
    number, row = first
    for kind in KINDS:
        if kind.fields <= row.keys():
            return kind
    # A row that lacks a field is probably meant to be of the nearest kind, whose parser names the missing field.
    nearest = max(KINDS, key=lambda kind: len(kind.fields & row.keys()) / len(kind.fields))
    if nearest.fields & row.keys():
        return nearest
    known = "; ".join(f"{kind.name} ({', '.join(sorted(kind.fields))})" for kind in KINDS)
    raise DataError(f"{str(path)!r}, line {number}: this problem is of no known kind. Known kinds and their fields: {known}.")
