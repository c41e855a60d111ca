"""The recipe's section merge."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from xft_core.recipe.sections.base import MergeMethod, Search, Section, rule

ON_DELTAS: tuple[MergeMethod, ...] = ("task_arithmetic", "ties", "dare", "della", "model_stock")  # these need W_base
CLOSED_FORMS: tuple[MergeMethod, ...] = ("regmean", "fisher")
OPERATORS = (*CLOSED_FORMS, *ON_DELTAS)  # their result is not a mean with shares: mix leaves the merged FFNs themselves
SEARCHED = Literal["shared_expert_weight", "delta_scale"]  # numbers that merge.search can choose, see mixing/search


class MergeConfig(Section):
    """How the experts become one dense model: W = lambda W_0 + (1 - lambda) sum_i softmax(alpha)_i W_i per layer."""

    added: ClassVar[frozenset[str]] = frozenset({
        "scale", "density", "density_spread", "search", "search_over", "search_trials", "search_rows",
        "search_layers_per_group", "ensemble", "ensemble_rows", "ensemble_steps", "rows", "objective", "delta_scale",
        "delta_scale_scope", "granularity", "block_count", "headroom", "headroom_threshold", "uniform_penalty", "smoothness",
        "expert_dropout", "cross_validation", "generator", "generator_from", "keep_features", "export_adapter",
        "wise"})

    form_rules: ClassVar[tuple[dict[str, Any], ...]] = (
        rule({"method": {"enum": ["uniform", *OPERATORS]}}, {"shared_expert_weight": {"type": "number"}}),
        rule({"method": {"not": {"const": "learned"}}}, {"delta_scale": {"type": "number"}}),
        rule({"method": {"enum": list(OPERATORS)}}, {"delta_scale": {"const": 1}}),
        rule({"method": {"enum": [*OPERATORS, "ewa", "shared_only"]}}, {"search": {"const": "none"}}))

    method: MergeMethod = Field("learned", description=(
        "learned (alpha by gradient), uniform (equal alpha), routing (mean routing weights on training data), "
        "ewa, also called mean (mean of all experts, afterwards: what EWA, arXiv 2308.06093, ends with; sft.expert_averaging "
        "averages while training), shared_only (the shared expert alone), regmean and fisher (closed forms of statistics on "
        "calibration_rows), or an operator on the experts' differences from the base model: task_arithmetic, ties, dare, "
        "della, model_stock. docs/explanation/options/operators.md."))
    shared_expert_weight: float | None = Field(0.75, ge=0, le=1, description=(
        "lambda, the shared expert's share; empty: learned too, from 0.75 (method learned only). Plays no part in "
        "the methods routing, ewa, shared_only, regmean and model_stock, nor without a shared expert."))
    learning_rate: float = Field(0.02, gt=0, le=10, description=(
        "Adam's learning rate for alpha. The paper's 1e-5 leaves every weight within about 1% of uniform; this one moves "
        "them. Plays no part in methods other than learned."))
    epochs: float = Field(1.0, gt=0, le=100, description=(
        "Passes over the training rows. Plays no part in methods other than learned."))
    max_steps: int | None = Field(None, ge=1, description=(
        "Stop after this many optimizer steps; empty for no limit. Plays no part in methods other than learned."))
    batch_size: int = Field(64, ge=1, description=(
        "Sequences per optimizer step. Plays no part in methods other than learned."))
    micro_batch_size: int = Field(8, ge=1, description=(
        "Sequences per forward pass. Must divide batch_size. Plays no part in methods other than learned."))
    warmup_steps: int = Field(125, ge=0, description=(
        "Steps of linear warm-up (at most a tenth of all steps). Plays no part in methods other than learned."))
    calibration_rows: int = Field(512, ge=1, description=(
        "Rows that the methods routing, regmean and fisher take statistics of, that the headroom test measures on, and that "
        "features of the experts are taken from. Plays no part where there is none of these."))
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Weights and arithmetic while learning alpha.")
    scale: float = Field(1.0, ge=0, le=10, description=(
        "How far task_arithmetic, ties, dare, della and model_stock go from the base model: 0 is the base model, 1 the "
        "operator's own result. Plays no part in other methods."))
    density: float = Field(0.5, gt=0, le=1, description=(
        "Part of the elements of each expert's difference from the base model that ties, dare and della keep (TIES' paper "
        "keeps 0.2, DARE's 0.1 to 0.9). Plays no part in other methods."))
    density_spread: float = Field(0.2, ge=0, lt=2, description=(
        "della keeps small elements with probability density - density_spread / 2, large ones with density + "
        "density_spread / 2 (DELLA's epsilon). Plays no part in other methods."))
    search: Search = Field("none", description=(
        "Search numbers of the merge on the rows that coefficients are chosen on, from the method's own result: golden (golden "
        "section, one number), tpe, cmaes (two numbers or more), or none. It takes the best trial, which is never worse there "
        "than the start. docs/explanation/options/search.md."))
    search_over: list[SEARCHED] = Field(["shared_expert_weight"], min_length=1, description=(
        "What is searched: shared_expert_weight (lambda; the routed experts keep their proportions), delta_scale (gamma, from "
        "0 to 1.5), or both. Plays no part without search."))
    search_trials: int = Field(16, ge=1, le=10_000, description=(
        "Evaluations of the loss, the start included. Plays no part without search."))
    search_rows: int = Field(256, ge=1, description=(
        "Each trial is measured on this many rows, the same for all. Plays no part without search."))
    search_layers_per_group: int | None = Field(None, ge=1, description=(
        "So many layers have a number of their own; empty: all have the same. Plays no part without search, nor in golden."))
    ensemble: Literal["none", "greedy", "learned"] = Field("none", description=(
        "One more model, of whole models: the merged one, the dense SFT with its averages and soups, and the base model; "
        "greedy (each joins the mean if that lowers the loss) or learned (a share of each). "
        "docs/explanation/options/ensembles.md."))
    ensemble_rows: int = Field(256, ge=1, description=(
        "The ensemble is chosen on this many rows. Plays no part without ensemble."))
    ensemble_steps: int = Field(20, ge=1, le=10_000, description=(
        "Steps of learning the ensemble's shares. Plays no part but in ensemble learned."))
    wise: list[Annotated[float, Field(gt=0, lt=1)]] = Field([], max_length=20, description=(
        "Also measure the merged model this part of the way from the base model (WiSE-FT, arXiv 2109.01903): 0.5 is half of "
        "each. The report plots what domains trade. They are measured, not registered: for that, set delta_scale."))
    rows: Literal["held_in", "reserved"] = Field("held_in", description=(
        "Rows that coefficients are chosen on: held_in (the training rows, the paper's) or reserved (data.reserved_rows, that "
        "no model was trained on). Plays no part in the methods uniform, ewa and shared_only without a headroom test."))
    objective: Literal["nll", "distill"] = Field("nll", description=(
        "What is made small: nll (loss of the merged model) or distill (KL divergence of the merged model from the "
        "Mixture-of-Experts on response tokens). Plays no part in methods other than learned."))
    delta_scale: float | None = Field(1.0, ge=0, le=2, description=(
        "gamma in W = W_base + gamma (W_mix - W_base): 1 is the mixture itself, 0 the base model (WiSE-FT, arXiv 2109.01903); "
        "empty: learned too, from 1 (method learned only). A base model is needed only where it is not 1."))
    delta_scale_scope: Literal["ffn", "model"] = Field("ffn", description=(
        "What gamma scales: ffn (the FFNs; where it is learned, one number for each layer) or model (one number for all "
        "weights). Plays no part where delta_scale is 1."))
    granularity: Literal["layer", "tensor", "block", "column"] = Field("layer", description=(
        "What has coefficients of its own: each layer, each tensor of a layer's FFN, each of block_count blocks of its "
        "neurons, or each neuron (column: wants uniform_penalty). Plays no part in methods other than learned."))
    block_count: int = Field(4, ge=1, le=65_536, description=(
        "Blocks of neurons in a layer. Plays no part in a granularity other than block."))
    headroom: bool = Field(False, description=(
        "First measure on calibration_rows of the rows what could be won along lambda, gamma, the gradient and a few other "
        "directions; take uniform mixing where that is less than headroom_threshold. Plays no part in methods other than "
        "learned."))
    headroom_threshold: float = Field(0.002, ge=0, le=100, description=(
        "Nats per response token that must be there to win. Plays no part without headroom."))
    uniform_penalty: float = Field(0.0, ge=0, le=1e30, description=(
        "rho, weight of KL(shares || uniform shares), summed over layers. Plays no part in methods other than learned, nor "
        "with cross_validation."))
    smoothness: float = Field(0.0, ge=0, le=1e30, description=(
        "eta, weight of |alpha_l - alpha_(l-1)|^2, summed over layers. Plays no part in methods other than learned."))
    expert_dropout: float = Field(0.0, ge=0, lt=1, description=(
        "Probability that a step leaves out one routed expert of each layer, drawn by the seed. Plays no part in methods other "
        "than learned."))
    cross_validation: bool = Field(False, description=(
        "Choose rho from 0, 0.001, 0.01 and 0.1 by three folds of the rows: about nine times the work. Plays no part in "
        "methods other than learned."))
    generator: Literal["free", "attention", "graph"] = Field("free", description=(
        "What alpha comes from: free (a number for each expert), attention (a small network that attends over experts and "
        "layers) or graph (one on the graph of experts), from features of the experts. Plays no part in methods other than "
        "learned."))
    generator_from: str | None = Field(None, description=(
        "Generator that python -m xft_core meta-train made: it predicts alpha, and nothing is learned. Empty: learn. Plays no "
        "part in methods other than learned."))
    keep_features: bool = Field(False, description=(
        "Leave the features of the experts beside the coefficients, for meta-train. Generators leave them anyway. Plays no "
        "part in methods other than learned."))
    export_adapter: bool = Field(False, description=(
        "Also write the merge as a LoRA adapter for PEFT: what low-rank experts add together, and the weights that they share "
        "as the model that it is for. Needs upcycle.expert_rank. Plays no part in the merged model."))

    @field_validator("method", mode="before")
    @classmethod
    def _clearer_name(cls, value: Any) -> Any:
        return "ewa" if value == "mean" else value

    @model_validator(mode="after")
    def _fields_fit(self) -> "MergeConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})")
        if self.delta_scale is None and self.method != "learned":
            raise ValueError(f"delta_scale is empty (learned), but method is {self.method}: give a number, 0 to 2")
        if self.method == "learned":
            self._learning_fits()
        if self.shared_expert_weight is None and self.method == "uniform":
            raise ValueError("shared_expert_weight is empty (learned), but method is uniform: give a number, 0 to 1")
        if self.shared_expert_weight is None and self.method in OPERATORS:
            raise ValueError(f"shared_expert_weight is empty (learned), but method {self.method} learns nothing: give a number")
        if self.delta_scale != 1 and self.method in OPERATORS:
            raise ValueError(
                f"delta_scale is {self.delta_scale}, but method {self.method} makes no mixture that it could scale: leave it "
                "at 1 (merge.scale does the same for differences from the base)")
        scaled = self.delta_scale != 1 or (self.search != "none" and "delta_scale" in self.search_over)
        if self.export_adapter and (scaled or self.granularity != "layer" or self.method in OPERATORS):
            raise ValueError(
                "export_adapter is true, but an adapter holds shares of whole layers alone: leave delta_scale at 1 and "
                "granularity at layer, and take a method that weighs experts")
        self._della_fits()
        self._search_fits()
        return self

    def conflict_with(self, num_layers: int, num_neurons: int) -> str | None:
        """Why experts of so many layers and FFN neurons cannot be merged like this, for people; None where they can."""
        if self.method == "learned" and self.granularity == "block" and self.block_count > num_neurons:
            return (f"merge.block_count is {self.block_count}, but an FFN of this model has {num_neurons} neurons: take "
                    f"{num_neurons} or fewer")
        groups = -(-num_layers // min(self.search_layers_per_group or num_layers, num_layers))
        if self.search == "cmaes" and groups * len(self.search_over) < 2:
            return ("merge.search is cmaes, which takes two numbers or more, and there is one: set "
                    f"merge.search_layers_per_group to less than the model's {num_layers} layers, or use golden")
        return None

    def _della_fits(self) -> None:
        least, most = self.density - self.density_spread / 2, self.density + self.density_spread / 2
        if self.method == "della" and not (least > 0 and most <= 1):
            raise ValueError(
                f"density {self.density:g} and density_spread {self.density_spread:g} make della keep elements with a "
                f"probability of {least:g} to {most:g}: these must be above 0 and at most 1")

    def _search_fits(self) -> None:
        if self.search == "none":
            return
        if self.method in (*OPERATORS, "ewa", "shared_only"):
            raise ValueError(f"search is {self.search}, but method {self.method} has no number to search: set search to none")
        if len(set(self.search_over)) < len(self.search_over):
            raise ValueError("search_over names a number twice")
        if self.method == "learned" and self.granularity != "layer":
            raise ValueError(
                f"search is {self.search}, which changes the shares of whole layers, but granularity is {self.granularity}: "
                "set it to layer, or search to none")
        one_gamma = "delta_scale" in self.search_over and self.delta_scale_scope == "model"
        if one_gamma and self.search_layers_per_group is not None and self.search != "golden":
            raise ValueError(
                "delta_scale_scope is model, so that gamma is one number, but search_layers_per_group asks for several: leave "
                "it empty, or set delta_scale_scope to ffn")
        if self.search == "golden" and len(self.search_over) > 1:
            raise ValueError(f"search golden takes one number, search_over has {len(self.search_over)}: use tpe or cmaes")

    def _learning_fits(self) -> None:
        predicted = self.generator_from is not None
        if predicted and self.generator == "free":
            raise ValueError("generator_from names a generator, but generator is free: set it to attention or graph")
        if self.generator != "free" and self.granularity != "layer":
            raise ValueError(
                f"generator {self.generator} makes coefficients of whole layers, but granularity is {self.granularity}: set it "
                "to layer, or generator to free")
        if self.keep_features and self.granularity != "layer":
            raise ValueError(
                f"keep_features is for generators, which make coefficients of whole layers, but granularity is "
                f"{self.granularity}: set it to layer, or turn keep_features off")
        if predicted and (self.cross_validation or self.headroom or self.delta_scale is None):
            raise ValueError(
                "generator_from predicts alpha and learns nothing: turn cross_validation and headroom off, and give "
                "delta_scale a number")
        if predicted and self.shared_expert_weight is None:
            raise ValueError("generator_from predicts alpha alone: give shared_expert_weight a number, 0 to 1")
