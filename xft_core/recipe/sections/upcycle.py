"""The recipe's section upcycle."""

from typing import Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Normalization, Section


class UpcycleConfig(Section):
    """How the dense model becomes a Mixture-of-Experts."""

    num_experts: int = Field(8, ge=2, le=64, description="Experts per layer, the shared one included.")
    num_experts_per_tok: int = Field(6, ge=1, le=64, description=(
        "Experts active per token, the shared one included. At most num_experts."))
    normalization: Normalization = Field("xft", description=(
        "Routing weights: xft (max(s) times the softmax over the chosen s; sums to one), renormalize (max(s) times "
        "s over its sum; sums to one), none (s itself: the scale mismatch that XFT removes, for comparison). Plays no part "
        "without a shared expert, with 2 experts, or where num_experts_per_tok is 2."))
    shared_expert: bool = Field(True, description=(
        "One expert is always on (XFT). Off: vanilla sparse upcycling, softmax over the top-k logits of all experts."))
    router_noise: bool = Field(True, description="Noisy top-k while training: learned noise on the router's logits.")
    store_experts: Literal["once", "all"] = Field("once", description=(
        "once: the identical experts are stored once and expanded while loading; all: every expert is written out."))

    @property
    def is_identity(self) -> bool:
        """Whether the untouched Mixture-of-Experts is the dense model: its routing weights sum to one."""
        return self.normalization != "none" or not self.shared_expert

    @model_validator(mode="after")
    def _experts_fit(self) -> "UpcycleConfig":
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than num_experts ({self.num_experts}); "
                f"choose at most {self.num_experts}")
        if self.shared_expert and self.num_experts_per_tok < 2:
            raise ValueError("num_experts_per_tok is 1, but the shared expert is always on: choose 2 or more")
        return self
