"""The recipe's section upcycle."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Normalization, Section


class UpcycleConfig(Section):
    """How the dense model becomes a Mixture-of-Experts."""

    added: ClassVar[frozenset[str]] = frozenset({
        "mode", "fusion_concentration", "experts_from", "dense_share"})

    num_experts: int = Field(8, ge=2, le=64, description="Experts per layer, the shared one included.")
    num_experts_per_tok: int = Field(6, ge=1, le=64, description=(
        "Experts active per token, the shared one included. At most num_experts."))
    normalization: Normalization = Field("xft", description=(
        "Routing weights: xft (max(s) times the softmax over the chosen s; sums to one), renormalize (max(s) times "
        "s over its sum; sums to one), none (s itself: the scale mismatch that XFT removes, for comparison). Plays no part "
        "without a shared expert, with 2 experts, or where num_experts_per_tok is 2."))
    shared_expert: bool = Field(True, description=(
        "One expert is always on (XFT). Off: vanilla sparse upcycling, softmax over the top-k logits of all experts."))
    router_noise: bool = Field(True, description=(
        "Noisy top-k while training: learned noise on the router's logits. Plays no part in mode fusion."))
    store_experts: Literal["once", "all"] = Field("once", description=(
        "once: the identical experts are stored once and expanded while loading; all: every expert is written out."))
    mode: Literal["routed", "fusion"] = Field("routed", description=(
        "routed: each token goes to its experts. fusion (ExFusion, arXiv 2603.27965): every token goes through one FFN of "
        "weights W(c) = sum_i c_i W_i, with c drawn for each layer and forward pass while training, and equal otherwise: the "
        "work of a dense model with the parameters of all experts. It needs shared_expert false and merge.method ewa."))
    fusion_concentration: float = Field(4.0, gt=0, le=1e6, description=(
        "Concentration of the symmetric Dirichlet distribution that c is drawn from: the larger, the closer to equal shares. "
        "Plays no part in mode routed."))
    experts_from: Literal["base", "checkpoints", "branches"] = Field("base", description=(
        "What the experts start as: base (copies of the base model's FFN, the paper's), checkpoints (FFNs of evenly spaced "
        "checkpoints of a dense SFT, UpIT, arXiv 2410.01610; all else and the shared expert are its last), branches (FFNs of "
        "dense models that are tuned on disjoint random parts of the rows, as in Branch-Train-Mix, arXiv 2403.07816; all else "
        "and the shared expert are the branches' mean)."))
    dense_share: float = Field(0.5, gt=0, le=1, description=(
        "Share of sft.epochs that the dense models are tuned for before upcycling; the Mixture-of-Experts has the rest. 1: the "
        "experts are merged as they are. Plays no part where experts_from is base."))

    @property
    def is_identity(self) -> bool:
        """Whether the untouched Mixture-of-Experts is the dense model: its routing weights sum to
        one, and its experts are the dense model's."""
        return self.sums_to_one and self.experts_from == "base"

    @property
    def sums_to_one(self) -> bool:
        """Whether the routing weights of every token sum to one."""
        return self.normalization != "none" or not self.shared_expert

    @property
    def num_routed(self) -> int:
        """Experts that the router chooses from."""
        return self.num_experts - int(self.shared_expert)

    @model_validator(mode="after")
    def _experts_fit(self) -> "UpcycleConfig":
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than num_experts ({self.num_experts}); "
                f"choose at most {self.num_experts}")
        if self.shared_expert and self.num_experts_per_tok < 2:
            raise ValueError("num_experts_per_tok is 1, but the shared expert is always on: choose 2 or more")
        if self.mode == "fusion" and self.shared_expert:
            raise ValueError("mode is fusion, which has no shared expert: set shared_expert to false")
        return self
