"""Trials of a search of merge numbers, written by the mix stage if merge.search is on."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Result, ResultFile


class Trial(Result):
    """One evaluation."""

    number: int = Field(description="Number of the trial; 0 is the start [count]")
    values: dict[str, float] = Field(description=(
        "Searched numbers by name and group of layers, for example shared_expert_weight/0 [no unit]"))
    nll: float | None = Field(description="Loss on the selection rows; null if it is not a number [nats per response token]")


class TrialsFile(ResultFile):
    """trials.json: every trial of a search in order, and the chosen one."""

    file_name: ClassVar[str] = "trials.json"
    search: str = Field(description="Search of the recipe [text]")
    split: str = Field(description="Rows that trials were measured on: train or reserved [text]")
    rows: int = Field(description="Number of these rows [count]")
    layers_per_group: int = Field(description="Layers that share a number [count]")
    chosen: int = Field(description="Number of the chosen trial [count]")
    trials: list[Trial] = Field(description="The trials, in the order in which they were run")
