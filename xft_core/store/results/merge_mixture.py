"""Results of the merge_mixture stage."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class MergeMixtureMetrics(Metrics):
    """Size of the dense model, and the similarity of the experts that it averages."""

    parameters: int | None = Field(description="Parameters of the dense model [count]")
    num_experts: int | None = Field(description="Experts, including a shared one [count]")
    expert_cosine_mean: float | None = Field(description=(
        "Cosine between two experts' tensors, mean over pairs and tensors; above 0.9 for experts with a common ancestor [no "
        "unit]"))
    expert_cosine_min: float | None = Field(description=(
        "Smallest of these cosines over tensors, each the mean over pairs [no unit]"))
