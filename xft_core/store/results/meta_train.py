"""Results of the meta-train stage."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, Result, ResultFile


class MetaTrainMetrics(Metrics):
    """How well a generator reproduces the coefficients that earlier runs learned."""

    runs: int | None = Field(description="Runs that the generator learned from [count]")
    error: float | None = Field(description="Mean squared error of alpha on these runs [no unit]")
    recovered: float | None = Field(description=(
        "Share of learning's gain in held-out loss over uniform mixing that the prediction achieves, leaving one run out, "
        "from sums over all runs; absent for one run, or if learning gained nothing [no unit]"))


class LeftOutRun(Result):
    """A run that the generator did not learn from."""

    mix: str = Field(description="Name of the mix artifact's directory [text]")
    uniform: float = Field(description="Held-out loss of uniform mixing [nats per response token]")
    learned: float = Field(description="Held-out loss of the mixing that the run learned [nats per response token]")
    predicted: float = Field(description="Held-out loss of the prediction [nats per response token]")


class LeaveOneOutFile(ResultFile):
    """leave_one_out.json: the gains of predictions for runs that were left out."""

    file_name: ClassVar[str] = "leave_one_out.json"
    runs: list[LeftOutRun] = Field(description="The runs in their order")

    @property
    def recovered(self) -> float | None:
        """The share of learning's gain that the predictions achieve; None if learning gained nothing."""
        won = sum(run.uniform - run.learned for run in self.runs)
        return sum(run.uniform - run.predicted for run in self.runs) / won if won > 0 else None
