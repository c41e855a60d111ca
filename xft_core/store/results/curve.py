"""The points of curves: the values in metrics.jsonl of the sft and mix stages for one optimizer step (see store/curves.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from xft_core.store.curves import read_metrics
from xft_core.store.results.base import Flat, Metrics


class CurveValues(Metrics):
    """The measurements of one step; a point has some of them."""

    loss: float | None = Field(None, description="Training loss, without the balance loss [nats per response token]")
    learning_rate: float | None = Field(None, description="Learning rate of the step [no unit]")
    grad_norm: float | None = Field(None, description="Norm of the gradient before clipping [no unit]")
    balance_loss: float | None = Field(None, description="Balance loss of the router, before its weight [no unit]")
    router_entropy: float | None = Field(None, description="Entropy of the router, mean over layers [nats]")
    expert_load_min: float | None = Field(None, description="Smallest load of an expert in any layer [fraction, 0 to 1]")
    expert_load_max: float | None = Field(None, description="Largest load of an expert in any layer [fraction, 0 to 1]")
    expert_load: Annotated[dict[int, float], Flat("expert_load/", int)] = Field({}, description=(
        "Load of each routed expert by its number, mean over layers [fraction, 0 to 1]"))
    mean_shared_weight: float | None = Field(None, description=(
        "Routing weight of the shared expert, mean over layers [fraction, 0 to 1]"))
    gate_budget_loss: float | None = Field(None, description=(
        "Squared difference between the gate's mean and its budget, before its weight [no unit]"))
    diversity_loss: float | None = Field(None, description=(
        "Squared cosine between the contributions of a token's experts, before its weight [fraction, 0 to 1]"))
    score_variance: float | None = Field(None, description="Variance of the router's probabilities over experts [no unit]")
    mean_active_experts: float | None = Field(None, description=(
        "Experts per token, including the shared one, mean over layers, with top-p routing [count]"))
    top_p: float | None = Field(None, description=(
        "Threshold p that the probabilities of a token's experts sum to [fraction, 0 to 1]"))
    tokens_per_second: float | None = Field(None, description="Training speed since the last point [tokens per second]")
    epoch: float | None = Field(None, description="Passes over the data so far [count]")
    held_out_nll: float | None = Field(None, description="Held-out loss [nats per response token]")
    search_nll: float | None = Field(None, description=(
        "Loss of a trial on the selection rows; the step is the trial's number [nats per response token]"))
    search_best_nll: float | None = Field(None, description="Smallest trial loss so far [nats per response token]")
    delta_scale: float | None = Field(None, description="gamma of mixing, mean over layers, if it is learned [no unit]")
    others: Annotated[dict[str, float], Flat("")] = Field({}, description="Measurements of other versions, by name [no unit]")


@dataclass(frozen=True)
class CurvePoint:
    """The measurements of one optimizer step, numbered from 1; 0 is the start."""

    step: int
    values: CurveValues

    @classmethod
    def of(cls, point: dict[str, Any]) -> Self:
        """Create a point from a line of a curve file."""
        return cls(point["step"], CurveValues.from_flat(point["metrics"]))


def read_curve(path: Path) -> list[CurvePoint]:
    """Every point of a curve file, in order; empty if there is no file. Lines that are not points are skipped."""
    return list(map(CurvePoint.of, read_metrics(path)))
