"""Results of the choose_checkpoint stage."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, ResultFile


class ChooseCheckpointMetrics(Metrics):
    """Which of several steps of a training was chosen, and how it merges."""

    chosen: int | None = Field(description="Number of the chosen one, from 1 [count]")
    reserved_nll: float | None = Field(description="Loss of its uniform merge on reserved rows [nats per response token]")
    reserved_nll_last: float | None = Field(description="The same of the last one [nats per response token]")


class ChoiceFile(ResultFile):
    """choice.json: what was chosen from."""

    file_name: ClassVar[str] = "choice.json"
    chosen: str = Field(description="The chosen one [text]")
    reserved_nll: dict[str, float] = Field(description=(
        "Loss of each one's uniform merge on reserved rows, by name [nats per response token]"))
