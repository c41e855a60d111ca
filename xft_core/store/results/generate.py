"""Results of the generate stage."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from xft_core.errors import ArtifactError, first_line
from xft_core.files.jsonl import read_jsonl
from xft_core.store.results.base import REBUILD, Metrics, Result

SAMPLES = "samples.jsonl"


class Sample(Result):
    """One line of samples.jsonl, whose lines are in the benchmark's order."""

    task_id: str = Field(description="The problem that the sample answers [text]")
    sample_index: int = Field(description="Index of the answer among those of the problem, from 0 [count]")
    prompt: str = Field(description="The full text given to the model [text]")
    completion: str = Field(description="The full text that the model wrote [text]")
    solution: str = Field(description=(
        "The program to grade, usually the problem's code and the completion up to the stop [text]"))
    finish_reason: str = Field(description=(
        "stop, length (cut at the maximum answer length) or prompt_too_long (the model was not asked) [text]"))
    new_tokens: int = Field(description="Tokens that the model wrote [count]")

    @property
    def sample_id(self) -> tuple[str, int]:
        """Task id and sample index."""
        return self.task_id, self.sample_index


def generated_samples(directory: Path) -> Iterator[Sample]:
    """The lines of a generate artifact's samples.jsonl; none without that file. Raises DataError or ArtifactError for a damaged
    line."""
    path = directory / SAMPLES
    for number, row in read_jsonl(path) if path.is_file() else ():
        try:
            yield Sample.model_validate(row, extra="ignore")
        except ValueError as error:
            raise ArtifactError(f"{str(path)!r}, line {number}: {first_line(error)}. {REBUILD}") from None


class GenerateMetrics(Metrics):
    """The number of a model's answers, and their speed."""

    problems: int | None = Field(description="Problems of the benchmark that the model was asked [count]")
    samples: int | None = Field(description="Answers to all problems together [count]")
    new_tokens: int | None = Field(description="Tokens that the model wrote [count]")
    truncated: int | None = Field(description="Answers cut at generate.max_new_tokens [count]")
    prompt_too_long: int | None = Field(description=(
        "Answers that the model was not asked for, because the prompt leaves no room [count]"))
    seconds: float | None = Field(description="Duration of the start that finished the stage [seconds]")
    problems_per_minute: float | None = Field(description="Speed of the start that finished the stage [problems per minute]")
