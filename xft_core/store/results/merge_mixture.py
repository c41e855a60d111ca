"""Results of the merge_mixture stage."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class MergeMixtureMetrics(Metrics):
    """Size of the dense model, and how alike the experts are that it is the mean of."""

    parameters: int | None = Field(description="Parameters of the dense model [count]")
    num_experts: int | None = Field(description="Experts, a shared one included [count]")
    expert_cosine_mean: float | None = Field(description=(
        "Cosine of two experts' tensors, mean over pairs and tensors; experts of one ancestor have above 0.9 [no unit]"))
    expert_cosine_min: float | None = Field(description="The least of these over tensors, each the mean over pairs [no unit]")
