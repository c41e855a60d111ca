"""Results of the choose_checkpoint stage."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, ResultFile


class ChooseCheckpointMetrics(Metrics):
    """The chosen step of a training, and the quality of its merge."""

    chosen: int | None = Field(description="Number of the chosen step, from 1 [count]")
    reserved_nll: float | None = Field(description="Loss of its uniform merge on reserved rows [nats per response token]")
    reserved_nll_last: float | None = Field(description=(
        "Loss of the last step's uniform merge on reserved rows [nats per response token]"))


class ChoiceFile(ResultFile):
    """choice.json: the candidates and the choice."""

    file_name: ClassVar[str] = "choice.json"
    chosen: str = Field(description="The chosen step [text]")
    reserved_nll: dict[str, float] = Field(description=(
        "Loss of each step's uniform merge on reserved rows, by name [nats per response token]"))
