"""The recipe section upcycle."""

import json
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Normalization, Section, rule

STOCK = ("granite", "qwen2_moe")  # normalizations of architectures that other programs support
ASSIGNED = ("hashed", "random", "by_example")  # routers without logits, which ignore hidden states


class UpcycleConfig(Section):
    """How the dense model becomes a Mixture-of-Experts."""

    added: ClassVar[frozenset[str]] = frozenset({
        "mode", "fusion_concentration", "experts_from", "branches_by", "dense_share", "router", "routing_temperature",
        "shared_gate", "shared_gate_start", "routing", "target_active", "expert_rank", "expert_alpha", "groups", "group_rank",
        "groups_per_tok", "router_start"})

    form_rules: ClassVar[tuple[dict[str, Any], ...]] = (
        *(rule({"num_experts": {"const": number}}, {"num_experts_per_tok": {"maximum": number}}) for number in range(2, 64)),
        rule({"shared_expert": {"const": True}}, {"num_experts_per_tok": {"minimum": 2}}),
        rule({"mode": {"const": "fusion"}}, {"shared_expert": {"const": False}}),
        rule({"routing": {"const": "top_p"}}, {"target_active": {"type": "number"}}))

    num_experts: int = Field(8, ge=2, le=64, description="Experts per layer, including the shared one.")
    num_experts_per_tok: int = Field(6, ge=1, le=64, description=(
        "Active experts per token, including the shared one; with routing top_p, the maximum. At most num_experts. With 1 "
        "and no shared expert, a token's only expert has weight 1: the expert is trained, but a learned router gets a "
        "gradient only from the balance loss, not from the task (but see sft.router_gradient)."))
    normalization: Normalization = Field("xft", description=(
        "Routing weights. xft: max(s) times the softmax over the chosen s; sums to one. renormalize: max(s) times s over its "
        "sum; sums to one. none: s itself, with the scale mismatch that XFT removes, for comparison. The other two train in "
        "an architecture that other programs can serve, with a linear router and the softmax over the chosen logits. granite "
        "(granitemoeshared, for llama and mistral): the shared expert always has 1 - shared_gate_start. qwen2_moe (for "
        "qwen2): the shared expert has a gate that starts at 1/2, the others have 1/2. Plays no part without a shared "
        "expert; xft, renormalize and none also play none with 2 experts or with num_experts_per_tok 2."))
    shared_expert: bool = Field(True, description=(
        "One expert is always active (XFT). Off: vanilla sparse upcycling, softmax over the top-k logits of all experts."))
    router_noise: bool = Field(True, description=(
        "Noisy top-k during training: learned noise on the router's logits (of fixed size with router frozen). Plays no part "
        "with the routers hashed, random and by_example, nor in mode fusion."))
    store_experts: Literal["once", "all"] = Field("once", description=(
        "once: identical experts are stored once and expanded when loaded; all: every expert is written. Plays no part with "
        "expert_rank, where the weights that experts share are stored once, and each expert's own weights separately."))
    mode: Literal["routed", "fusion"] = Field("routed", description=(
        "routed: each token goes to its experts. fusion (ExFusion, arXiv 2603.27965): every token goes through one FFN with "
        "weights W(c) = sum_i c_i W_i. During training, c is drawn for each layer and forward pass; otherwise all c_i are "
        "equal. This takes the work of a dense model, with the parameters of all experts. It needs shared_expert false and "
        "merge.method ewa."))
    fusion_concentration: float = Field(4.0, gt=0, le=1e6, description=(
        "Concentration of the symmetric Dirichlet distribution that c is drawn from. Larger values give more equal shares. "
        "Plays no part in mode routed."))
    experts_from: Literal["base", "checkpoints", "branches"] = Field("base", description=(
        "What the experts are initialized from: base (copies of the base model's FFN, the paper's), checkpoints (FFNs of "
        "evenly spaced checkpoints of a dense SFT, UpIT, arXiv 2410.01610; the shared expert and all other weights come from "
        "the last) or branches (FFNs of dense models tuned on disjoint parts of the rows, as in Branch-Train-Mix, arXiv "
        "2403.07816; the shared expert and all other weights are the mean of the branches)."))
    branches_by: Literal["random", "domain", "clusters"] = Field("random", description=(
        "How the rows are divided among branches: random (disjoint parts of equal size), domain (each branch gets the rows "
        "of some domains of data.sources, assigned in turn: the first domain to the first branch, the second to the second, "
        "and so on) or clusters (each branch gets one cluster of rows whose prompts the base model represents similarly, by "
        "k-means; cluster sizes vary). Plays no part unless experts_from is branches."))
    dense_share: float = Field(0.5, gt=0, le=1, description=(
        "Share of sft.epochs spent on tuning the dense models before upcycling; the rest goes to the Mixture-of-Experts. 1: "
        "the experts are merged without further tuning. Plays no part where experts_from is base."))
    router_start: Literal["random", "ridge", "trained"] = Field("random", description=(
        "Initial weights of the router's logits. random: as for a linear layer; ridge: by ridge regression from hidden "
        "states to experts, on a hundredth of the rows (at least 256). Each row is labelled with the branch that was tuned "
        "on it, or with the checkpoint that has the lowest loss on it. trained (UpIT): these weights, then trained on the "
        "same rows and labels while everything else is frozen. ridge and trained need experts that differ (experts_from)."))
    router: Literal["learned", "frozen", "hashed", "random", "by_example"] = Field("learned", description=(
        "How a token's experts are chosen. learned: by the router's logits; frozen: by the logits of the router's initial "
        "weights, which are not trained; hashed: by a hash of the token id, without parameters; random: drawn for every "
        "token and layer during training; by_example: by a hash of the token's example, one choice for all of its tokens and "
        "all layers, so that experts see disjoint rows. The last three have equal probabilities s. Outside training, random "
        "and by_example use all experts equally."))
    routing_temperature: float = Field(1.0, ge=0.01, le=100, description=(
        "tau in w_i = m softmax(s / tau)_i. Below 1, the best expert gets more: at 1, with 6 active experts, it gets at most "
        "0.405. Plays no part unless at least two routed experts are active besides a shared one with normalization xft, nor "
        "with the routers hashed, random and by_example."))
    shared_gate: Literal["probability", "token"] = Field("probability", description=(
        "How m, the routed experts' share of a token, is computed; the shared expert gets 1 - m. probability: max(s), the "
        "paper's; token: sigmoid(u.x + b), learned per layer. Plays no part without a shared expert."))
    shared_gate_start: float = Field(0.25, gt=0, lt=1, description=(
        "m at the start with shared_gate token, and throughout with normalization granite: 0.25 leaves the shared expert "
        "0.75, the paper's lambda. Plays no part otherwise."))
    routing: Literal["top_k", "top_p"] = Field("top_k", description=(
        "top_k: every token has num_experts_per_tok experts. top_p: each token has as many experts as their s need to sum to "
        "p, at most num_experts_per_tok. p is steered towards target_active during training and fixed afterwards."))
    target_active: float | None = Field(None, gt=1, le=64, description=(
        "Target for the active experts per token, averaged over tokens and layers, including the shared one; empty: no "
        "target. Required with routing top_p. Plays no part with routing top_k."))
    expert_rank: int | None = Field(None, ge=1, le=1024, description=(
        "Low-rank experts: each is the shared weights plus a change of this rank, W_s + (expert_alpha / expert_rank) B A. Of "
        "the ranks that DeRS (arXiv 2503.01359) tried, 4 is the best. Empty: every expert has its own weights (the paper's)."))
    expert_alpha: float = Field(16.0, gt=0, le=10_000, description=(
        "Scale of low-rank changes, as in LoRA (arXiv 2106.09685): they are multiplied by expert_alpha / rank. Plays no part "
        "without expert_rank."))
    groups: int | None = Field(None, ge=1, le=64, description=(
        "Hierarchical experts: the number of equal-sized groups of routed experts, each with its own low-rank change. The "
        "instruction determines the groups, and each token the experts within them. Needs expert_rank. Empty: no groups."))
    group_rank: int = Field(8, ge=1, le=1024, description="Rank of a group's own change. Plays no part without groups.")
    groups_per_tok: int = Field(1, ge=1, le=64, description=(
        "Active groups per token. num_experts_per_tok then counts the experts in each group (and the shared one). Plays no "
        "part without groups."))

    @property
    def is_identity(self) -> bool:
        """Whether the untrained Mixture-of-Experts computes the same as the dense model: its routing weights sum to one, and
        its experts are the dense model's."""
        return self.sums_to_one and self.experts_from == "base"

    @property
    def sums_to_one(self) -> bool:
        """Whether the routing weights of every token sum to one."""
        return self.normalization != "none" or not self.shared_expert

    @property
    def is_stock(self) -> bool:
        """Whether the Mixture-of-Experts is trained in an architecture that other programs support."""
        return self.normalization in STOCK

    @property
    def down_scales(self) -> tuple[float, float]:
        """The factors applied to the stored down projections of the shared expert and of the routed ones, which make the
        architecture's own sum equal to ours."""
        if self.normalization == "granite":  # y = E_0(x) + sum_i p_i E_i(x)
            return 1 - self.shared_gate_start, self.shared_gate_start
        return (1.0, 0.5) if self.normalization == "qwen2_moe" else (1.0, 1.0)  # y = sigmoid(g.x) E_0(x) + sum_i p_i E_i(x)

    @property
    def num_routed(self) -> int:
        """R, the number of experts that the router chooses from: all except the shared one."""
        return self.num_experts - int(self.shared_expert)

    def active_experts(self, training: bool) -> float:
        """Average number of experts that compute for a token, including the shared one; 1 where they are mixed beforehand."""
        if self.mode == "fusion":
            return 1
        if not training and self.router in ("random", "by_example"):
            return self.num_experts
        return self.num_experts_per_tok if self.target_active is None else self.target_active

    @model_validator(mode="after")
    def _experts_fit(self) -> "UpcycleConfig":
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than num_experts ({self.num_experts}); "
                f"choose at most {self.num_experts}")
        if self.branches_by != "random" and self.experts_from != "branches":
            raise ValueError(
                f"branches_by is {self.branches_by}, but experts_from is {self.experts_from}, which has no branches: set "
                "experts_from to branches")
        if self.router_start != "random" and self.experts_from == "base":
            raise ValueError(
                f"router_start is {self.router_start}, but experts_from is base, whose experts are all the same: choose "
                "checkpoints or branches")
        if self.router_start != "random" and (self.router in ASSIGNED or self.mode == "fusion"):
            raise ValueError(
                f"router_start is {self.router_start}, but "
                f"{'mode fusion' if self.mode == 'fusion' else f'the router {self.router}'} has no logits to initialize: leave "
                "router_start at random")
        if self.shared_expert and self.num_experts_per_tok < 2:
            raise ValueError("num_experts_per_tok is 1, but the shared expert is always on: choose 2 or more")
        if self.mode == "fusion" and self.shared_expert:
            raise ValueError("mode is fusion, which has no shared expert: set shared_expert to false")
        if self.mode == "fusion" and (self.router, self.routing) != ("learned", "top_k"):
            raise ValueError("mode is fusion, which has no router: leave router and routing at their defaults")
        return self

    @model_validator(mode="after")
    def _routing_fits(self) -> "UpcycleConfig":
        if self.shared_gate == "token" and self.normalization == "none" and self.shared_expert:
            raise ValueError(
                "shared_gate is token, whose weights sum to one, but normalization is none, whose weights do not: choose xft")
        if self.routing_temperature != 1 and self.shared_expert and self.normalization != "xft":
            raise ValueError(
                f"routing_temperature is {self.routing_temperature:g}, but only normalization xft has a softmax of s to apply "
                f"it to, not {self.normalization}: choose xft, or leave routing_temperature at 1")
        if self.routing == "top_k":
            return self
        if self.router in ASSIGNED:
            raise ValueError(f"routing is top_p, but the router {self.router} has no probabilities: choose learned or frozen")
        least = 1 + int(self.shared_expert)
        if self.target_active is None or not least <= self.target_active <= self.num_experts_per_tok:
            raise ValueError(
                f"routing is top_p and target_active is {self.target_active}: give a number from {least} to "
                f"num_experts_per_tok ({self.num_experts_per_tok})")
        return self

    @model_validator(mode="after")
    def _stock_fits(self) -> "UpcycleConfig":
        if not self.is_stock:
            return self
        wanted = {
            "shared_expert": True, "router": ("learned", "frozen"), "routing": "top_k", "shared_gate": "probability",
            "expert_rank": None}
        for name, fitting in wanted.items():
            found = getattr(self, name)
            if found != fitting and not (isinstance(fitting, tuple) and found in fitting):
                shown = " or ".join(fitting) if isinstance(fitting, tuple) else json.dumps(fitting)
                raise ValueError(
                    f"{name} is {json.dumps(found)}, but normalization is {self.normalization}, whose architecture does not "
                    f"support this: set {name} to {shown}, or choose normalization xft")
        return self

    @model_validator(mode="after")
    def _low_rank_fits(self) -> "UpcycleConfig":
        if self.expert_rank is None:
            return self
        if self.mode == "fusion":
            raise ValueError("mode is fusion, which mixes experts that have their own weights: leave expert_rank empty")
        if self.experts_from != "base":
            raise ValueError(
                f"experts_from is {self.experts_from}, whose experts have their own weights: leave expert_rank empty")
        if self.groups is not None and (self.router, self.routing) != ("learned", "top_k"):
            raise ValueError(
                f"groups is {self.groups}, and experts in groups are chosen by the logits of their group: leave router and "
                "routing at their defaults")
        if self.groups is not None and self.shared_gate == "token" and self.shared_expert:
            raise ValueError(
                f"groups is {self.groups}, so the prompt sets the shared expert's share: leave shared_gate at probability")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> "UpcycleConfig":
        if self.groups is None:
            return self
        if self.expert_rank is None:
            raise ValueError(f"groups is {self.groups}, but expert_rank is empty: experts in groups are low-rank. Set a rank")
        routed = self.num_routed
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
                f"{' plus the shared one' if self.shared_expert else ''}: choose at most "
                f"{size + int(self.shared_expert)}")
        if self.normalization == "none" and self.shared_expert:
            raise ValueError("normalization is none, but the shares of groups and experts must sum to one: choose another one")
        return self
