"""The recipe's section upcycle."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Normalization, Section


class UpcycleConfig(Section):
    """How the dense model becomes a Mixture-of-Experts."""

    added: ClassVar[frozenset[str]] = frozenset({"expert_rank", "expert_alpha", "groups", "group_rank", "groups_per_tok"})

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
        "once: the identical experts are stored once and expanded while loading; all: every expert is written out. Plays no "
        "part with expert_rank, where the weights that experts share are stored once and what each adds beside them."))
    expert_rank: int | None = Field(None, ge=1, le=1024, description=(
        "Low-rank experts: each is the shared weights and a change of this rank, W_s + (expert_alpha / expert_rank) B A. 4 is "
        "the best of those that DeRS (arXiv 2503.01359) tried. Empty: every expert has weights of its own (the paper's)."))
    expert_alpha: float = Field(16.0, gt=0, le=10_000, description=(
        "Scale of low-rank changes, as in LoRA (arXiv 2106.09685): they are multiplied by expert_alpha / rank. Plays no part "
        "without expert_rank."))
    groups: int | None = Field(None, ge=1, le=64, description=(
        "Hierarchical experts: so many groups of routed experts, of equal size, each with a low-rank change of its own. The "
        "instruction chooses the groups, each token the experts within. Needs expert_rank. Empty: no groups."))
    group_rank: int = Field(8, ge=1, le=1024, description="Rank of a group's own change. Plays no part without groups.")
    groups_per_tok: int = Field(1, ge=1, le=64, description=(
        "Groups active per token; num_experts_per_tok then counts the experts in each of them (and the shared one). Plays no "
        "part without groups."))

    @property
    def num_routed_experts(self) -> int:
        """R: the experts that a router chooses from."""
        return self.num_experts - int(self.shared_expert)

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

    @model_validator(mode="after")
    def _groups_fit(self) -> "UpcycleConfig":
        if self.groups is None:
            return self
        if self.expert_rank is None:
            raise ValueError(f"groups is {self.groups}, but expert_rank is empty: experts in groups are low-rank, give a rank")
        routed = self.num_routed_experts
        if routed % self.groups:
            fitting = [groups for groups in range(1, routed + 1) if routed % groups == 0]
            raise ValueError(
                f"groups ({self.groups}) does not divide the {routed} routed experts (num_experts without the shared one): "
                f"choose one of {', '.join(map(str, fitting))}, or another num_experts")
        if self.groups_per_tok > self.groups:
            raise ValueError(f"groups_per_tok is {self.groups_per_tok}, more than groups ({self.groups})")
        size, chosen = routed // self.groups, self.num_experts_per_tok - int(self.shared_expert)
        if chosen > size:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, but a group has {size} experts"
                f"{' and there is the shared one' if self.shared_expert else ''}: choose at most "
                f"{size + int(self.shared_expert)}")
        if self.normalization == "none" and self.shared_expert:
            raise ValueError("normalization is none, but the shares of groups and experts must sum to one: choose another")
        return self
