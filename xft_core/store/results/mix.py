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
    delta_scale_mean: float | None = Field(None, description=(
        "gamma, the mixture's share beside the base model, mean over layers; absent where it is 1 [no unit]"))
    held_out_nll_unscaled: float | None = Field(None, description=(
        "Held-out loss of the chosen mixing without delta_scale; absent where gamma is 1 [nats per response token]"))
    headroom: float | None = Field(None, description=(
        "By how much the best probe along what is learned lowers the loss of uniform mixing on the rows of the headroom test; "
        "absent without one [nats per response token]"))
    headroom_threshold: float | None = Field(None, description=(
        "Below this headroom, uniform mixing is taken; absent without a test [nats per response token]"))
    delta_scale_moved: float | None = Field(None, description=(
        "Largest difference of a learned gamma from 1, where it began; absent where it is not learned [no unit]"))
    predicted: int | None = Field(None, description=(
        "1 where a generator of earlier runs predicted the shares; absent otherwise [count]"))
    uniform_penalty: float | None = Field(None, description=(
        "rho that cross-validation chose; absent without it [no unit]"))
    rows_too_few: int | None = Field(None, description=(
        "Rows that were fewer than the folds of cross-validation; absent where it chose, or was not asked for [count]"))
    kept_uniform: int | None = Field(None, description=(
        "1 where uniform mixing was taken, since there was no headroom or the objective with its penalty was no lower; absent "
        "otherwise [count]"))


class LayerCoefficients(Result):
    """How one layer is put together."""

    weights: list[float] = Field(description=(
        "Share of each expert, the shared one first if there is one; sum 1 [fraction, 0 to 1]"))
    movement: float | None = Field(None, description=(
        "Largest difference of a share from uniform mixing [fraction, 0 to 1]"))
    delta_scale: float | None = Field(None, description="gamma of the layer's FFN; absent where it is 1 [no unit]")


class CoefficientsFile(ResultFile):
    """coefficients.json: the share of every expert in every layer of the merged model."""

    file_name: ClassVar[str] = "coefficients.json"
    method: str = Field(description="Merge method of the recipe [text]")
    shared_expert: bool = Field(description="Whether the first weight of each layer is the shared expert's [yes or no]")
    layers: list[LayerCoefficients] = Field(description="The layers in the model's order")
    merged_ffns: bool = Field(False, description=(
        "Whether the merged FFNs lie beside this file (ffn-00000.safetensors and so on): an operator's result is not a mean "
        "with these shares, which are those it starts from [yes or no]"))
    granularity: str = Field("layer", description=(
        "What has shares of its own; of tensor, block and column the weights above are means of a layer, and "
        "groups.safetensors has those of every group [text]"))
    delta_scale_outside: float | None = Field(None, description=(
        "gamma of the weights outside the FFNs; absent where it is 1 [no unit]"))


class Probe(Result):
    """One place where the headroom test looked."""

    name: str = Field(description="Where: lambda 0.5, gradient 1, expert 3, random 2 [text]")
    loss: float = Field(description="The objective there [nats per response token]")
    learnable: bool = Field(description="Whether learning may get there with this recipe [yes or no]")


class HeadroomFile(ResultFile):
    """headroom.json: what the headroom test measured before learning."""

    file_name: ClassVar[str] = "headroom.json"
    rows: int = Field(description="Rows that it was measured on [count]")
    uniform: float = Field(description="The objective of uniform mixing [nats per response token]")
    threshold: float = Field(description="merge.headroom_threshold [nats per response token]")
    probes: list[Probe] = Field(description="Where it looked, in order")

    @property
    def headroom(self) -> float:
        """By how much the best of what may be learned is below uniform mixing; negative where none is."""
        return self.uniform - min(probe.loss for probe in self.probes if probe.learnable)

    @property
    def best(self) -> Probe:
        """The lowest of all, whether it may be learned or not."""
        return min(self.probes, key=lambda probe: probe.loss)


class PenaltyLoss(Result):
    """What cross-validation measured with one rho."""

    uniform_penalty: float = Field(description="rho [no unit]")
    losses: list[float] = Field(description="The objective on each fold, learned on the others [nats per response token]")


class CrossValidationFile(ResultFile):
    """cross_validation.json: how rho was chosen."""

    file_name: ClassVar[str] = "cross_validation.json"
    chosen: float = Field(description="rho with the lowest mean loss; of equal ones the largest [no unit]")
    penalties: list[PenaltyLoss] = Field(description="Every rho that was tried")
