"""The recipe's section upcycle."""

import json
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Normalization, Section, rule

STOCK = ("granite", "qwen2_moe")  # normalizations of architectures that other programs have
ASSIGNED = ("hashed", "random", "by_example")  # routers without logits: they do not look at hidden states


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

    num_experts: int = Field(8, ge=2, le=64, description="Experts per layer, the shared one included.")
    num_experts_per_tok: int = Field(6, ge=1, le=64, description=(
        "Experts active per token, the shared one included; with routing top_p the most. At most num_experts. With 1 and no "
        "shared expert a token's only expert has weight 1: the expert is trained, and a learned router gets a gradient from "
        "the balance loss alone, none from the task (but see sft.router_gradient)."))
    normalization: Normalization = Field("xft", description=(
        "Routing weights: xft (max(s) times the softmax over the chosen s; sums to one), renormalize (max(s) times "
        "s over its sum; sums to one), none (s itself: the scale mismatch that XFT removes, for comparison). The next two "
        "train in an architecture that other programs serve, with a linear router and the softmax over the chosen logits: "
        "granite (granitemoeshared, for llama and mistral; the shared expert has 1 - shared_gate_start for good), qwen2_moe "
        "(for qwen2; the shared expert has a gate that starts at 1/2, the others 1/2). Plays no part without a shared expert; "
        "the first three neither with 2 experts, nor where num_experts_per_tok is 2."))
    shared_expert: bool = Field(True, description=(
        "One expert is always on (XFT). Off: vanilla sparse upcycling, softmax over the top-k logits of all experts."))
    router_noise: bool = Field(True, description=(
        "Noisy top-k while training: learned noise on the router's logits (of a fixed size with router frozen). Plays no part "
        "with the routers hashed, random and by_example, nor in mode fusion."))
    store_experts: Literal["once", "all"] = Field("once", description=(
        "once: the identical experts are stored once and expanded while loading; all: every expert is written out. Plays no "
        "part with expert_rank, where the weights that experts share are stored once and what each adds beside them."))
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
        "dense models that are tuned on disjoint parts of the rows, as in Branch-Train-Mix, arXiv 2403.07816; all else and the "
        "shared expert are the branches' mean)."))
    branches_by: Literal["random", "domain", "clusters"] = Field("random", description=(
        "How branches share the rows: random (disjoint parts of equal size), domain (each has the rows of some domains of "
        "data.sources: the first of the first domain, the second of the second, and in turn again where there are more domains "
        "than branches), or clusters (each has a cluster of rows whose prompts are alike to the base model, by k-means; of any "
        "size). Plays no part unless experts_from is branches."))
    dense_share: float = Field(0.5, gt=0, le=1, description=(
        "Share of sft.epochs that the dense models are tuned for before upcycling; the Mixture-of-Experts has the rest. 1: the "
        "experts are merged as they are. Plays no part where experts_from is base."))
    router_start: Literal["random", "ridge"] = Field("random", description=(
        "First weights of the router's logits. random: as a linear layer's; ridge: by ridge regression from hidden states to "
        "experts, on a hundredth of the rows (at least 256), each labelled with the branch that was tuned on it, or with the "
        "checkpoint that has the lowest loss on it. ridge needs experts that differ (experts_from)."))
    router: Literal["learned", "frozen", "hashed", "random", "by_example"] = Field("learned", description=(
        "How a token's experts are found. learned: by the router's logits; frozen: by those of its start, which gets no "
        "gradient; hashed: by a hash of the token's id, without parameters; random: drawn for every token and layer while "
        "training; by_example: by a hash of the example that the token is in, one choice for all of it and for all layers, so "
        "that experts see disjoint rows. The last three have equal probabilities s; random and by_example use all experts "
        "equally when they do not train."))
    routing_temperature: float = Field(1.0, ge=0.01, le=100, description=(
        "tau of w_i = m softmax(s / tau)_i. Below 1 the best expert gets more: at 1, with 6 active experts, at most 0.405. "
        "Plays no part unless two or more routed experts are active beside a shared one with normalization xft, nor with the "
        "routers hashed, random and by_example."))
    shared_gate: Literal["probability", "token"] = Field("probability", description=(
        "m, the part of a token that routed experts share; the shared expert gets 1 - m. probability: max(s), the paper's; "
        "token: sigmoid(u.x + b), learned per layer. Plays no part without a shared expert."))
    shared_gate_start: float = Field(0.25, gt=0, lt=1, description=(
        "m at the start with shared_gate token, and for good with normalization granite: 0.25 leaves the shared expert 0.75, "
        "the paper's lambda. Plays no part otherwise."))
    routing: Literal["top_k", "top_p"] = Field("top_k", description=(
        "top_k: every token has num_experts_per_tok experts. top_p: as many as it takes for their s to sum to p, at most "
        "num_experts_per_tok; p is steered to target_active while training and fixed afterwards."))
    target_active: float | None = Field(None, gt=1, le=64, description=(
        "Experts active per token on average over tokens and layers, the shared one included; empty: there is none. "
        "Plays no part with routing top_k, needed with top_p."))
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
    def is_identity(self) -> bool:
        """Whether the untouched Mixture-of-Experts is the dense model: its routing weights sum to
        one, and its experts are the dense model's."""
        return self.sums_to_one and self.experts_from == "base"

    @property
    def sums_to_one(self) -> bool:
        """Whether the routing weights of every token sum to one."""
        return self.normalization != "none" or not self.shared_expert

    @property
    def is_stock(self) -> bool:
        """Whether the Mixture-of-Experts is trained in an architecture that other programs have."""
        return self.normalization in STOCK

    @property
    def down_scales(self) -> tuple[float, float]:
        """What the down projections of the shared expert and of the routed ones are stored times: the architecture's own sum
        then is ours."""
        if self.normalization == "granite":  # y = E_0(x) + sum_i p_i E_i(x)
            return 1 - self.shared_gate_start, self.shared_gate_start
        return (1.0, 0.5) if self.normalization == "qwen2_moe" else (1.0, 1.0)  # y = sigmoid(g.x) E_0(x) + sum_i p_i E_i(x)

    @property
    def num_routed(self) -> int:
        """R: experts that the router chooses from; all but the one that is always on."""
        return self.num_experts - int(self.shared_expert)

    def active_experts(self, training: bool) -> float:
        """Experts that compute for a token on average, the shared one included; one where they are mixed beforehand."""
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
                f"branches_by is {self.branches_by}, but experts_from is {self.experts_from}, which has no branches: set it to "
                "branches")
        if self.router_start == "ridge" and self.experts_from == "base":
            raise ValueError(
                "router_start is ridge, but experts_from is base, whose experts are all the same: choose checkpoints or "
                "branches")
        if self.router_start == "ridge" and (self.router in ASSIGNED or self.mode == "fusion"):
            raise ValueError(
                f"router_start is ridge, but {'mode fusion' if self.mode == 'fusion' else f'the router {self.router}'} has no "
                "logits to start: leave it at random")
        if self.shared_expert and self.num_experts_per_tok < 2:
            raise ValueError("num_experts_per_tok is 1, but the shared expert is always on: choose 2 or more")
        if self.mode == "fusion" and self.shared_expert:
            raise ValueError("mode is fusion, which has no shared expert: set shared_expert to false")
        if self.mode == "fusion" and (self.router, self.routing) != ("learned", "top_k"):
            raise ValueError("mode is fusion, which has no router: leave router and routing as they are")
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
                    f"{name} is {json.dumps(found)}, but normalization is {self.normalization}, an architecture that has no "
                    f"such thing: set {name} to {shown}, or choose normalization xft")
        return self

    @model_validator(mode="after")
    def _low_rank_fits(self) -> "UpcycleConfig":
        if self.expert_rank is None:
            return self
        if self.mode == "fusion":
            raise ValueError("mode is fusion, which mixes experts with weights of their own: leave expert_rank empty")
        if self.experts_from != "base":
            raise ValueError(
                f"experts_from is {self.experts_from}, whose experts have weights of their own: leave expert_rank empty")
        if self.groups is not None and (self.router, self.routing) != ("learned", "top_k"):
            raise ValueError(
                f"groups is {self.groups}, whose experts are chosen by the logits of their group: leave router and routing as "
                "they are")
        if self.groups is not None and self.shared_gate == "token" and self.shared_expert:
            raise ValueError(
                f"groups is {self.groups}, whose prompt sets the shared expert's part: leave shared_gate at probability")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> "UpcycleConfig":
        if self.groups is None:
            return self
        if self.expert_rank is None:
            raise ValueError(f"groups is {self.groups}, but expert_rank is empty: experts in groups are low-rank, give a rank")
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
                f"{' and there is the shared one' if self.shared_expert else ''}: choose at most "
                f"{size + int(self.shared_expert)}")
        if self.normalization == "none" and self.shared_expert:
            raise ValueError("normalization is none, but the shares of groups and experts must sum to one: choose another")
        return self
