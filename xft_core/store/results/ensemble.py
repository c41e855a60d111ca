"""Results of the ensemble stage."""

from typing import Annotated, ClassVar

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, ResultFile


class EnsembleMetrics(Metrics):
    """The quality of the ensemble, on the rows that it was chosen on and on others."""

    parameters: int | None = Field(description="Parameters of the ensemble [count]")
    held_out_nll: float | None = Field(description="Held-out loss [nats per response token]")
    selection_nll: float | None = Field(description="Loss on the rows that shares were chosen on [nats per response token]")
    selection_nll_before: float | None = Field(description=(
        "Loss of the best member (greedy) or of equal shares (learned) on the same rows [nats per response token]"))
    weight: Annotated[dict[str, float], Flat("weight/")] = Field({}, description="Share of each member [fraction, 0 to 1]")


class EnsembleFile(ResultFile):
    """ensemble.json: the composition of the ensemble."""

    file_name: ClassVar[str] = "ensemble.json"
    method: str = Field(description="greedy or learned [text]")
    split: str = Field(description="Rows that shares were chosen on: train or reserved [text]")
    rows: int = Field(description="Number of these rows [count]")
    weights: dict[str, float] = Field(description="Share of each member; sum 1 [fraction, 0 to 1]")
    measured: dict[str, float] = Field(description=(
        "Loss on these rows of each member alone (greedy) or of equal shares (learned) [nats per response token]"))
