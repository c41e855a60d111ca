"""The recipe section merge."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from xft_core.recipe.sections.base import MergeMethod, Search, Section, rule

ON_DELTAS: tuple[MergeMethod, ...] = ("task_arithmetic", "ties", "dare", "della", "model_stock")  # these need W_base
CLOSED_FORMS: tuple[MergeMethod, ...] = ("regmean", "fisher")
OPERATORS = (*CLOSED_FORMS, *ON_DELTAS)  # their result is not a weighted mean, so mix writes the merged FFNs
SEARCHED = Literal["shared_expert_weight", "delta_scale"]  # numbers that merge.search can search, see mixing/search


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
        "learned (alpha by gradient), uniform (equal alpha), routing (mean routing weights on training data), ewa, also "
        "called mean (mean of all experts after training, as EWA, arXiv 2308.06093, does at its end; sft.expert_averaging "
        "averages during training), shared_only (the shared expert alone), regmean and fisher (closed forms of statistics on "
        "calibration_rows), or an operator on the experts' differences from the base model: task_arithmetic, ties, dare, "
        "della, model_stock. See docs/explanation/options/operators.md."))
    shared_expert_weight: float | None = Field(0.75, ge=0, le=1, description=(
        "lambda, the shared expert's share; empty: learned too, starting at 0.75 (method learned only). Plays no part in the "
        "methods routing, ewa, shared_only, regmean and model_stock, nor without a shared expert."))
    learning_rate: float = Field(0.02, gt=0, le=10, description=(
        "Adam's learning rate for alpha. The paper's 1e-5 leaves every weight within about 1% of uniform; the default moves "
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
        "Rows used for the statistics of the methods routing, regmean and fisher, for the headroom test and for the features "
        "of the experts. Plays no part where none of these is used."))
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Precision of weights and arithmetic while learning alpha.")
    scale: float = Field(1.0, ge=0, le=10, description=(
        "How far task_arithmetic, ties, dare, della and model_stock move from the base model: 0 is the base model, 1 the "
        "operator's own result. Plays no part in other methods."))
    density: float = Field(0.5, gt=0, le=1, description=(
        "Fraction of the elements of each expert's difference from the base model that ties, dare and della keep (the TIES "
        "paper keeps 0.2, the DARE paper 0.1 to 0.9). Plays no part in other methods."))
    density_spread: float = Field(0.2, ge=0, lt=2, description=(
        "della keeps small elements with probability density - density_spread / 2 and large ones with density + "
        "density_spread / 2 (DELLA's epsilon). Plays no part in other methods."))
    search: Search = Field("none", description=(
        "Search the merge's numbers, starting from the method's own result, on the rows that coefficients are chosen on: "
        "golden (golden-section search, one number), tpe, cmaes (two or more numbers) or none. The best trial is used, which "
        "is never worse on these rows than the start. See docs/explanation/options/search.md."))
    search_over: list[SEARCHED] = Field(["shared_expert_weight"], min_length=1, description=(
        "Numbers to search: shared_expert_weight (lambda; the routed experts keep their proportions), delta_scale (gamma, "
        "from 0 to 1.5), or both. Plays no part without search."))
    search_trials: int = Field(16, ge=1, le=10_000, description=(
        "Evaluations of the loss, including the start. Plays no part without search."))
    search_rows: int = Field(256, ge=1, description=(
        "Rows that each trial is measured on, the same for all trials. Plays no part without search."))
    search_layers_per_group: int | None = Field(None, ge=1, description=(
        "Number of consecutive layers that share one value; empty: all layers share one. Plays no part without search, nor "
        "in golden."))
    ensemble: Literal["none", "greedy", "learned"] = Field("none", description=(
        "One more model, built from complete models: the merged model, the dense SFT with its averages and soups, and the "
        "base model. greedy: each joins the mean if that lowers the loss; learned: each gets a learned share. See "
        "docs/explanation/options/ensembles.md."))
    ensemble_rows: int = Field(256, ge=1, description="Rows that the ensemble is chosen on. Plays no part without ensemble.")
    ensemble_steps: int = Field(20, ge=1, le=10_000, description=(
        "Steps of learning the ensemble's shares. Plays no part except in ensemble learned."))
    wise: list[Annotated[float, Field(gt=0, lt=1)]] = Field([], max_length=20, description=(
        "Also measure the merged model at these fractions of the way from the base model (WiSE-FT, arXiv 2109.01903): 0.5 is "
        "half of each. The report plots the trade-off between domains. These models are measured but not registered; to "
        "register one, set delta_scale."))
    rows: Literal["held_in", "reserved"] = Field("held_in", description=(
        "Rows that coefficients are chosen on: held_in (the training rows, the paper's) or reserved (data.reserved_rows, "
        "which no model was trained on). Plays no part in the methods uniform, ewa and shared_only without a headroom test."))
    objective: Literal["nll", "distill"] = Field("nll", description=(
        "Loss to minimize: nll (loss of the merged model) or distill (KL divergence of the merged model from the "
        "Mixture-of-Experts on response tokens). Plays no part in methods other than learned."))
    delta_scale: float | None = Field(1.0, ge=0, le=2, description=(
        "gamma in W = W_base + gamma (W_mix - W_base): 1 is the mixture itself, 0 the base model (WiSE-FT, arXiv "
        "2109.01903); empty: learned too, starting at 1 (method learned only). Only values other than 1 need a base model."))
    delta_scale_scope: Literal["ffn", "model"] = Field("ffn", description=(
        "What gamma scales: ffn (the FFNs; if gamma is learned, one number per layer) or model (one number for all weights). "
        "Plays no part where delta_scale is 1."))
    granularity: Literal["layer", "tensor", "block", "column"] = Field("layer", description=(
        "Unit that has its own coefficients: each layer, each tensor of a layer's FFN, each of block_count blocks of its "
        "neurons (block), or each neuron (column, best used with uniform_penalty). Plays no part in methods other than "
        "learned."))
    block_count: int = Field(4, ge=1, le=65_536, description=(
        "Blocks of neurons in a layer. Plays no part in granularities other than block."))
    headroom: bool = Field(False, description=(
        "First measure, on calibration_rows of the rows, how much could be gained along lambda, gamma, the gradient and a "
        "few other directions. If this is less than headroom_threshold, use uniform mixing. Plays no part in methods other "
        "than learned."))
    headroom_threshold: float = Field(0.002, ge=0, le=100, description=(
        "Minimum possible gain, in nats per response token. Plays no part without headroom."))
    uniform_penalty: float = Field(0.0, ge=0, le=1e30, description=(
        "rho, the weight of KL(shares || uniform shares), summed over layers. Plays no part in methods other than learned, "
        "nor with cross_validation."))
    smoothness: float = Field(0.0, ge=0, le=1e30, description=(
        "eta, the weight of |alpha_l - alpha_(l-1)|^2, summed over layers. Plays no part in methods other than learned."))
    expert_dropout: float = Field(0.0, ge=0, lt=1, description=(
        "Probability that a step leaves out one routed expert of each layer, drawn by the seed. Plays no part in methods "
        "other than learned."))
    cross_validation: bool = Field(False, description=(
        "Choose rho from 0, 0.001, 0.01 and 0.1 by three-fold cross-validation on the rows: about nine times the work. Plays "
        "no part in methods other than learned."))
    generator: Literal["free", "attention", "graph"] = Field("free", description=(
        "Source of alpha: free (a number for each expert), attention (a small network that attends over experts and layers) "
        "or graph (a network on the graph of experts). The networks use features of the experts. Plays no part in methods "
        "other than learned."))
    generator_from: str | None = Field(None, description=(
        "Generator trained by python -m xft_core meta-train: it predicts alpha, and nothing is learned. Empty: learn. Plays "
        "no part in methods other than learned."))
    keep_features: bool = Field(False, description=(
        "Store the features of the experts with the coefficients, for meta-train. Generators always store them. Plays no "
        "part in methods other than learned."))
    export_adapter: bool = Field(False, description=(
        "Also write the merge as a LoRA adapter for PEFT: the summed changes of the low-rank experts, and, as the model that "
        "the adapter is for, the weights that they share. Needs upcycle.expert_rank. Plays no part in the merged model."))

    @field_validator("method", mode="before")
    @classmethod
    def _clearer_name(cls, value: Any) -> Any:
        return "ewa" if value == "mean" else value

    @model_validator(mode="after")
    def _fields_fit(self) -> "MergeConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})")
        if self.delta_scale is None and self.method != "learned":
            raise ValueError(f"delta_scale is empty (learned), but method is {self.method}: give a number from 0 to 2")
        if self.method == "learned":
            self._learning_fits()
        if self.shared_expert_weight is None and self.method == "uniform":
            raise ValueError("shared_expert_weight is empty (learned), but method is uniform: give a number from 0 to 1")
        if self.shared_expert_weight is None and self.method in OPERATORS:
            raise ValueError(f"shared_expert_weight is empty (learned), but method {self.method} learns nothing: give a number")
        if self.delta_scale != 1 and self.method in OPERATORS:
            raise ValueError(
                f"delta_scale is {self.delta_scale}, but method {self.method} creates no mixture to scale: leave delta_scale "
                "at 1 (merge.scale does the same for differences from the base model)")
        scaled = self.delta_scale != 1 or (self.search != "none" and "delta_scale" in self.search_over)
        if self.export_adapter and (scaled or self.granularity != "layer" or self.method in OPERATORS):
            raise ValueError(
                "export_adapter is true, but an adapter can hold only shares of whole layers: leave delta_scale at 1 and "
                "granularity at layer, and use a method that weights experts")
        self._della_fits()
        self._search_fits()
        return self

    def conflict_with(self, num_layers: int, num_neurons: int) -> str | None:
        """Explain to the user why experts with these layers and FFN neurons cannot be merged like this; None if they can."""
        if self.method == "learned" and self.granularity == "block" and self.block_count > num_neurons:
            return (f"merge.block_count is {self.block_count}, but an FFN of this model has {num_neurons} neurons: use "
                    f"{num_neurons} or fewer")
        groups = -(-num_layers // min(self.search_layers_per_group or num_layers, num_layers))
        if self.search == "cmaes" and groups * len(self.search_over) < 2:
            return ("merge.search is cmaes, which needs at least two numbers, but there is one: set "
                    f"merge.search_layers_per_group to less than the model's {num_layers} layers, or use golden")
        return None

    def _della_fits(self) -> None:
        least, most = self.density - self.density_spread / 2, self.density + self.density_spread / 2
        if self.method == "della" and not (least > 0 and most <= 1):
            raise ValueError(
                f"density {self.density:g} and density_spread {self.density_spread:g} make della keep elements with a "
                f"probability of {least:g} to {most:g}: both must be above 0 and at most 1")

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
                "set granularity to layer, or search to none")
        one_gamma = "delta_scale" in self.search_over and self.delta_scale_scope == "model"
        if one_gamma and self.search_layers_per_group is not None and self.search != "golden":
            raise ValueError(
                "delta_scale_scope is model, so gamma is one number, but search_layers_per_group asks for several: leave "
                "search_layers_per_group empty, or set delta_scale_scope to ffn")
        if self.search == "golden" and len(self.search_over) > 1:
            raise ValueError(f"search golden takes one number, but search_over has {len(self.search_over)}: use tpe or cmaes")

    def _learning_fits(self) -> None:
        predicted = self.generator_from is not None
        if predicted and self.generator == "free":
            raise ValueError("generator_from names a generator, but generator is free: set it to attention or graph")
        if self.generator != "free" and self.granularity != "layer":
            raise ValueError(
                f"generator {self.generator} produces coefficients for whole layers, but granularity is {self.granularity}: "
                "set granularity to layer, or generator to free")
        if self.keep_features and self.granularity != "layer":
            raise ValueError(
                f"keep_features is for generators, which produce coefficients for whole layers, but granularity is "
                f"{self.granularity}: set granularity to layer, or turn keep_features off")
        if predicted and (self.cross_validation or self.headroom or self.delta_scale is None):
            raise ValueError(
                "generator_from predicts alpha and learns nothing: turn off cross_validation and headroom, and give "
                "delta_scale a number")
        if predicted and self.shared_expert_weight is None:
            raise ValueError("generator_from predicts only alpha: give shared_expert_weight a number from 0 to 1")
