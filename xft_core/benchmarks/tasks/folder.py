"""task.yaml, the description of a task in its folder."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from xft_core.errors import DataError, first_line
from xft_core.files.digests import TASK_FILE
from xft_core.files.disk import relative_path
from xft_core.files.parsing import parse_yaml

GRADERS = Path(__file__).parent / "graders"
_FIELD = re.compile(r"\{(\w+)\}")

FileName = Annotated[str, Field(min_length=1, max_length=200)]


class Task(BaseModel):
    """The fields of task.yaml. Immutable; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    template_fields: ClassVar[re.Pattern[str]] = _FIELD

    summary: str = Field(min_length=1, max_length=500, description="What the task asks, for readers.")
    grader: FileName = Field(description=(
        "A shipped grader (sql, extraction, quantity, exact), or a Python file in the folder, for example grader.py."))
    splits: dict[str, FileName] = Field(min_length=1, description="Files with rows, by split: {train: train.jsonl, test: ...}.")
    evaluate: str = Field("test", description="The split with the problems that models are asked.")
    prompt: str = Field("{instruction}", min_length=1, description=(
        "The instruction for tuned models; {name} stands for a row's field."))
    completion_prompt: str = Field("{instruction}\n", min_length=1, description=(
        "The text that a base model continues (the prompt style completion)."))
    completion_stops: list[Annotated[str, Field(min_length=1)]] = Field(["\n\n"], description=(
        "Texts at which a base model's answer ends."))
    response: str = Field("{response}", min_length=1, description="The right answer; {name} stands for a row's field.")
    hidden: list[str] = Field([], description="Fields that only the judge sees; the fields in response are always hidden.")
    take: Literal["fence", "whole"] = Field("fence", description=(
        "The part of an answer that is graded: the content of its first Markdown fence, if it has one, or the whole text."))
    group_by: list[str] = Field([], description="Fields by which the report shows pass rates.")
    extended: bool = Field(False, description="Whether the grader's plus verdicts say more than its base verdicts.")
    seconds: float = Field(10.0, gt=0, le=600, description="Processor time to run, and to judge, one answer.")

    @field_validator("splits")
    @classmethod
    def _stay_in_the_folder(cls, splits: dict[str, str]) -> dict[str, str]:
        return {split: relative_path(name) for split, name in splits.items()}

    @property
    def needed(self) -> tuple[str, ...]:
        """Fields that every row must have, in the order that the templates name them."""
        templates = (self.prompt, self.completion_prompt, self.response)
        named = [name for text in templates for name in _FIELD.findall(text)]
        return tuple(dict.fromkeys([*named, *self.hidden, *self.group_by]))

    @property
    def secret(self) -> frozenset[str]:
        """Fields that code written by a model must not see."""
        return frozenset(self.hidden) | set(_FIELD.findall(self.response))


def load_task(folder: Path) -> Task:
    """Load the task of a folder. Raises a DataError that names the file and the field."""
    path = folder / TASK_FILE
    try:
        return Task.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(
            f"{str(folder)!r} is a directory without {TASK_FILE}. A task's folder needs one; see docs/how-to/tasks.md. Any "
            "other benchmark is a file.") from None
    except ValidationError as error:
        found = error.errors()[0]
        field = ".".join(map(str, found["loc"])) or TASK_FILE
        raise DataError(f"{str(path)!r}, {field}: {first_line(ValueError(found['msg']))}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {first_line(error)}.") from None


def problem_file(folder: Path) -> Path:
    """The file with the problems that models are asked. Raises DataError if task.yaml names none, or it does not exist."""
    task = load_task(folder)
    name = task.splits.get(task.evaluate)
    if name is None:
        raise DataError(
            f"{str(folder / TASK_FILE)!r}, evaluate: there is no split {task.evaluate!r}. splits has: "
            f"{', '.join(task.splits)}.")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{str(folder / TASK_FILE)!r}, splits.{task.evaluate}: there is no file {str(path)!r}.")
    return path


def grader_source(folder: Path) -> str:
    """The grader's source. Raises DataError if it is neither a shipped grader nor a file in the folder."""
    name = load_task(folder).grader
    known = sorted(path.stem for path in GRADERS.glob("*.py") if path.stem != "__init__")
    path = GRADERS / f"{name}.py" if name in known else folder / name
    try:
        relative_path(name)
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise DataError(
            f"{str(folder / TASK_FILE)!r}, grader: {name!r} is not a shipped grader ({', '.join(known)}), and the folder has "
            "no such file.") from None

