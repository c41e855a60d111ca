"""Results of the row_losses stage."""

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from xft_core.store.results.base import Metrics, Result, ResultFile


class RowLossesMetrics(Metrics):
    """A model's loss on the held-out rows, and the work of its training."""

    nll: float | None = Field(description="Loss over all held-out rows [nats per response token]")
    nll_standard_error: float | None = Field(description=(
        "Standard error of nll, over rows; absent for a single row [nats per response token]"))
    rows: int | None = Field(description="Held-out rows [count]")
    reserved_nll: float | None = Field(description=(
        "Loss over all reserved rows; absent if none are reserved [nats per response token]"))
    training_tokens: float | None = Field(description="Tokens that the model was trained on, counting repetitions [count]")
    training_flops: float | None = Field(description="Floating-point operations of its training [count]")


class SourceRouting(Result):
    """Use of the routed experts on one source's held-out rows."""

    tokens: int = Field(description="Routed tokens [count]")
    load: list[list[float]] = Field(description=(
        "By layer, the share of all choices for each routed expert, sum 1; empty without rows [fraction, 0 to 1]"))


class SourceRoutingFile(ResultFile):
    """source_routing.json: the routing of a Mixture-of-Experts on a mixture of sources."""

    file_name: ClassVar[str] = "source_routing.json"
    ending: ClassVar[str] = "\n"
    sources: list[SourceRouting] = Field(description="The sources, in the recipe's order")


class RowLossesFile(ResultFile):
    """row_losses.json: the loss of every row, in the order of the prepared data."""

    file_name: ClassVar[str] = "row_losses.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    held_out: list[Annotated[tuple[float, int], Strict(False)]] = Field(description=(
        "For each held-out row, its loss summed over its response, and its number of response tokens [nats, count]"))
    reserved: list[Annotated[tuple[float, int], Strict(False)]] = Field([], description=(
        "The same for each reserved row; empty if none are reserved [nats, count]"))
