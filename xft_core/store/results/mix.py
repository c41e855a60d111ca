"""Results of the mix stage."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, Result, ResultFile


class MixMetrics(Metrics):
    """How the chosen mixing coefficients compare with uniform ones."""

    held_out_nll_uniform: float | None = Field(description="Held-out loss of uniform mixing [nats per response token]")
    steps: int | None = Field(description="Optimizer steps; absent for a method that learns nothing [count]")
    held_out_nll_merged: float | None = Field(description="Held-out loss of the chosen mixing [nats per response token]")
    movement_max: float | None = Field(description=(
        "Largest difference of an expert's share from uniform mixing, largest over layers [fraction, 0 to 1]"))
    movement_mean: float | None = Field(description=(
        "Largest difference of an expert's share from uniform mixing, mean over layers [fraction, 0 to 1]"))
    shared_expert_weight_mean: float | None = Field(description=(
        "Share of the shared expert, mean over layers; absent without one [fraction, 0 to 1]"))
    search_trials: int | None = Field(None, description="Trials of the search; absent without one [count]")
    search_nll_start: float | None = Field(None, description=(
        "Loss of the search's start on the selection rows; absent without a search, or if no number [nats per response token]"))
    search_nll_chosen: float | None = Field(None, description=(
        "Loss of the chosen trial on the selection rows; absent without a search, or if no number [nats per response token]"))


class LayerCoefficients(Result):
    """How one layer is put together."""

    weights: list[float] = Field(description=(
        "Share of each expert, the shared one first if there is one; sum 1 [fraction, 0 to 1]"))
    movement: float | None = Field(None, description=(
        "Largest difference of a share from uniform mixing [fraction, 0 to 1]"))


class CoefficientsFile(ResultFile):
    """coefficients.json: the share of every expert in every layer of the merged model."""

    file_name: ClassVar[str] = "coefficients.json"
    method: str = Field(description="Merge method of the recipe [text]")
    shared_expert: bool = Field(description="Whether the first weight of each layer is the shared expert's [yes or no]")
    layers: list[LayerCoefficients] = Field(description="The layers in the model's order")
    merged_ffns: bool = Field(False, description=(
        "Whether the merged FFNs lie beside this file (ffn-00000.safetensors and so on): the result of an operator is no mean "
        "with these shares, which are those it starts from [yes or no]"))
