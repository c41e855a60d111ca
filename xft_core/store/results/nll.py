"""Results of the nll stage."""

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from xft_core.store.results.base import Metrics, ResultFile


class NllMetrics(Metrics):
    """A model's loss on instruction data."""

    nll: float | None = Field(description="Loss over all rows [nats per response token]")
    rows: int | None = Field(description="Measured rows [count]")
    response_tokens: int | None = Field(description="Response tokens of these rows [count]")
    truncated: int | None = Field(description="Responses cut at data.max_length [count]")
    dropped: int | None = Field(description="Rows without a response, or without room for one [count]")
    nll_standard_error: float | None = Field(description=(
        "Standard error of nll, over rows; absent for a single row [nats per response token]"))


class NllFile(ResultFile):
    """nll.json: the loss of every row."""

    file_name: ClassVar[str] = "nll.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    nll: float = Field(description="Loss over all rows [nats per response token]")
    standard_error: float | None = Field(description=(
        "Standard error of nll, over rows; null for a single row [nats per response token]"))
    rows: list[Annotated[tuple[float, int], Strict(False)]] = Field(description=(
        "For each row, its loss summed over its response, and its number of response tokens [nats, count]"))
