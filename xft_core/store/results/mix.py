"""Results of the mix stage."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, Result, ResultFile


class MixMetrics(Metrics):
    """Comparison of the chosen mixing coefficients with uniform ones."""

    held_out_nll_uniform: float | None = Field(description="Held-out loss of uniform mixing [nats per response token]")
    steps: int | None = Field(description="Optimizer steps; absent for a method that learns nothing [count]")
    held_out_nll_merged: float | None = Field(description="Held-out loss of the chosen mixing [nats per response token]")
    movement_max: float | None = Field(description=(
        "Largest difference of an expert's share from uniform mixing, largest over layers [fraction, 0 to 1]"))
    movement_mean: float | None = Field(description=(
        "Largest difference of an expert's share from uniform mixing, mean over layers [fraction, 0 to 1]"))
    shared_expert_weight_mean: float | None = Field(description=(
        "Share of the shared expert, mean over layers; absent without a shared expert [fraction, 0 to 1]"))
    search_trials: int | None = Field(None, description="Trials of the search; absent without a search [count]")
    search_nll_start: float | None = Field(None, description=(
        "Loss of the search's start on the selection rows; absent without a search, or if not a number [nats per response "
        "token]"))
    search_nll_chosen: float | None = Field(None, description=(
        "Loss of the chosen trial on the selection rows; absent without a search, or if not a number [nats per response "
        "token]"))
    delta_scale_mean: float | None = Field(None, description=(
        "gamma, the mixture's share, with 1 - gamma for the base model, mean over layers; absent if it is 1 [no unit]"))
    held_out_nll_unscaled: float | None = Field(None, description=(
        "Held-out loss of the chosen mixing without delta_scale; absent if gamma is 1 [nats per response token]"))
    headroom: float | None = Field(None, description=(
        "How much the best learnable probe lowers the loss of uniform mixing on the rows of the headroom test; absent "
        "without a test [nats per response token]"))
    headroom_threshold: float | None = Field(None, description=(
        "Headroom below which uniform mixing is used; absent without a test [nats per response token]"))
    delta_scale_moved: float | None = Field(None, description=(
        "Largest difference of a learned gamma from its start, 1; absent if it is not learned [no unit]"))
    predicted: int | None = Field(None, description=(
        "1 if a generator of earlier runs predicted the shares; absent otherwise [count]"))
    uniform_penalty: float | None = Field(None, description="rho chosen by cross-validation; absent without it [no unit]")
    rows_too_few: int | None = Field(None, description=(
        "Number of rows, if fewer than the folds of cross-validation; absent if it chose, or was not requested [count]"))
    kept_uniform: int | None = Field(None, description=(
        "1 if uniform mixing was used, because there was no headroom or the penalized objective was no lower; absent "
        "otherwise [count]"))


class LayerCoefficients(Result):
    """The composition of one layer."""

    weights: list[float] = Field(description=(
        "Share of each expert, starting with the shared one if there is one; sum 1 [fraction, 0 to 1]"))
    movement: float | None = Field(None, description=(
        "Largest difference of a share from uniform mixing [fraction, 0 to 1]"))
    delta_scale: float | None = Field(None, description="gamma of the layer's FFN; absent if it is 1 [no unit]")


class CoefficientsFile(ResultFile):
    """coefficients.json: the share of every expert in every layer of the merged model."""

    file_name: ClassVar[str] = "coefficients.json"
    method: str = Field(description="Merge method of the recipe [text]")
    shared_expert: bool = Field(description="Whether the first weight of each layer is the shared expert's [yes or no]")
    layers: list[LayerCoefficients] = Field(description="The layers in the model's order")
    merged_ffns: bool = Field(False, description=(
        "Whether the merged FFNs are next to this file (ffn-00000.safetensors and so on): the result of an operator is not a "
        "mean with these shares, which are only its starting point [yes or no]"))
    granularity: str = Field("layer", description=(
        "Unit that has its own shares; for tensor, block and column, the weights above are means per layer, and "
        "groups.safetensors has those of every group [text]"))
    delta_scale_outside: float | None = Field(None, description=(
        "gamma of the weights outside the FFNs; absent if it is 1 [no unit]"))


class Probe(Result):
    """One point that the headroom test measured."""

    name: str = Field(description="Location: lambda 0.5, gradient 1, expert 3, random 2 [text]")
    loss: float = Field(description="Objective at this point [nats per response token]")
    learnable: bool = Field(description="Whether learning can reach this point with this recipe [yes or no]")


class HeadroomFile(ResultFile):
    """headroom.json: the measurements of the headroom test before learning."""

    file_name: ClassVar[str] = "headroom.json"
    rows: int = Field(description="Rows used for the measurements [count]")
    uniform: float = Field(description="Objective of uniform mixing [nats per response token]")
    threshold: float = Field(description="merge.headroom_threshold [nats per response token]")
    probes: list[Probe] = Field(description="The probes, in order")

    @property
    def headroom(self) -> float:
        """How far the best learnable probe is below uniform mixing; negative if all are above it."""
        return self.uniform - min(probe.loss for probe in self.probes if probe.learnable)

    @property
    def best(self) -> Probe:
        """The lowest probe, learnable or not."""
        return min(self.probes, key=lambda probe: probe.loss)


class PenaltyLoss(Result):
    """Measurements of cross-validation with one rho."""

    uniform_penalty: float = Field(description="rho [no unit]")
    losses: list[float] = Field(description="Objective on each fold, learned on the other folds [nats per response token]")


class CrossValidationFile(ResultFile):
    """cross_validation.json: the measurements that rho was chosen by."""

    file_name: ClassVar[str] = "cross_validation.json"
    chosen: float = Field(description="rho with the lowest mean loss; the largest of equal ones [no unit]")
    penalties: list[PenaltyLoss] = Field(description="Every rho that was tried")
