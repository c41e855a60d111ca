"""Results of the lm_eval stage, with the metric names of lm-evaluation-harness."""

from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, Result, ResultFile

STANDARD_ERROR = "_standard_error"


class LmEvalMetrics(Metrics):
    """Numbers of one task."""

    scores: Annotated[dict[str, float], Flat("")] = Field(description=(
        "The harness's metrics by name (acc), those of parts of a group as part/acc, standard errors as acc_standard_error "
        "[each metric's own, mostly a fraction, 0 to 1]"))
    questions: int | None = Field(description="Questions of the task and all its parts [count]")


class Score(NamedTuple):
    """A metric of a task with its standard error, in the metric's own unit, and whether higher is better."""

    metric: str
    value: float
    standard_error: float | None
    higher_is_better: bool | None


class TaskResults(Result):
    """One task, group, or part of a group."""

    version: float | str | None = Field(None, description="Version of the task [text or number]")
    examples_in_prompt: int | None = Field(None, description="Solved examples before each question [count]")
    questions: int | None = Field(None, description="Number of questions asked [count]")
    metrics: dict[str, float] = Field(description=(
        "Value of each metric, and its standard error as NAME_standard_error [each metric's own, mostly a fraction, 0 to 1]"))
    higher_is_better: dict[str, bool | None] = Field(description="For each metric, whether higher is better [yes or no]")

    def scores(self) -> list[Score]:
        """The metrics, each with its standard error."""
        return [
            Score(name, value, self.metrics.get(f"{name}{STANDARD_ERROR}"), self.higher_is_better.get(name))
            for name, value in self.metrics.items() if not name.endswith(STANDARD_ERROR)]


class LmEvalFile(ResultFile):
    """results.json of the lm_eval stage."""

    file_name: ClassVar[str] = "results.json"
    lm_eval: str | None = Field(None, description="Version of lm-evaluation-harness [text]")
    task: str | None = Field(None, description="The requested task or group [text]")
    limit: int | None = Field(None, description="Maximum questions per task; null for all [count]")
    tasks: dict[str, TaskResults] = Field(description="The task and all its parts, by name")
