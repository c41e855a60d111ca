"""The numbers of a report: the models of ``comparison.json``. summary.py computes them, and findings.py puts them into
sentences. Every field gives its unit in brackets."""

import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from xft_core.reporting.pass_rates import Pair, PassRate, rate_text
from xft_core.reporting.run.multilingual import Average


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PassAtK(Part):
    """pass@k on ``tests``: "base", or "plus", which requires base and extended tests to pass."""

    tests: str = Field(description="Tests that must pass: base, or plus for base and extended tests [text]")
    k: int = Field(description="Attempts per problem [count]")
    rate: PassRate = Field(description="pass@k with its 95% interval [fraction, 0 to 1]")


class Group(Part):
    """pass@1 (with extended tests) on the problems of one group, for example of a ``library``."""

    criterion: str = Field(description="Criterion that defines the groups, such as library [text]")
    name: str = Field(description="Name of the group [text]")
    problems: int = Field(description="Graded problems of the group [count]")
    rate: PassRate = Field(description="pass@1 with its 95% interval [fraction, 0 to 1]")


class Score(Part):
    """One model on one benchmark. Without ``extended_tests``, "plus" equals "base". ``language``: for MultiPL-E only."""

    benchmark: str = Field(description="Title of the benchmark [text]")
    language: str | None = Field(description="Programming language, for MultiPL-E only [text]")
    extended_tests: bool = Field(description="Whether there are extended tests, so that plus can differ from base [yes or no]")
    problems: int = Field(description="Answered problems [count]")
    samples: int = Field(description="Answers to all problems [count]")
    pass_at_k: list[PassAtK] = Field(description="pass@k by tests and k")
    groups: list[Group] = Field(description="pass@1 of groups of problems")
    truncated: int | None = Field(description="Answers cut off at generate.max_new_tokens [count]")
    infrastructure_errors: int = Field(description="Answers without a verdict, which are not counted [count]")

    def rate(self, tests: str, k: int = 1) -> PassRate | None:
        """pass@k on ``tests``, if it was measured."""
        return next((item.rate for item in self.pass_at_k if (item.tests, item.k) == (tests, k)), None)

    def text(self, tests: str, k: int = 1) -> str:
        """pass@k in % with its interval, and the number of answers that were not graded; "-" if it was not measured."""
        rate = self.rate(tests, k)
        return rate_text(rate, self.infrastructure_errors) if rate else "-"


class Measure(Part):
    """A number other than pass@k: held-out loss on other data, or a metric of a task of lm-eval. ``interval``: 95%, over
    rows or questions."""

    title: str = Field(description="What was measured [text]")
    value: float = Field(description="The number [its own unit, which the title names]")
    interval: tuple[float, float] | None = Field(description=(
        "Its 95% interval, over rows or questions [its own unit, which the title names]"))
    higher_is_better: bool | None = Field(description="Whether more is better; null if the harness does not say [yes or no]")


class Row(Part):
    """One model. ``held_out_nll`` in nats per response token; ``parameters_active`` per token."""

    model: str = Field(description="One of base, sft, moe and merged, or a rival that was evaluated [text]")
    name: str = Field(description="Display name [text]")
    held_out_nll: float | None = Field(description="Held-out loss [nats per response token]")
    parameters_total: int | None = Field(description="Parameters [count]")
    parameters_active: int | None = Field(description="Parameters used per token [count]")
    scores: list[Score] = Field(description="The model on each benchmark")
    measures: list[Measure] = Field(description="Other measurements")


class Difference(Part):
    """``model`` compared with ``against`` on one benchmark's ``tests``, problem by problem."""

    benchmark: str = Field(description="Title of the benchmark [text]")
    tests: str = Field(description="Which tests: base or plus [text]")
    model: str = Field(description="The model [text]")
    against: str = Field(description="The model it is compared with [text]")
    pair: Pair = Field(description=(
        "pass@1 of the model minus that of the other, and the problems they differ on [difference of fractions, -1 to 1]"))


class LayerMix(Part):
    """Shares of the merged layer, which sum to one, and the largest change of one since the start."""

    shared: float | None = Field(description="Share of the shared expert; null without one [fraction, 0 to 1]")
    routed: list[float] = Field(description="Share of each routed expert [fraction, 0 to 1]")
    movement: float | None = Field(description="Largest change of a share since the start [fraction, 0 to 1]")


class MixingOptions(Part):
    """Mixing options other than shares per layer; None for those that do not apply."""

    delta_scale_mean: float | None = Field(description="gamma, mean over layers [no unit]")
    delta_scale_learned: bool = Field(description="Whether gamma was learned [yes or no]")
    held_out_nll_unscaled: float | None = Field(description="Held-out loss without gamma [nats per response token]")
    headroom: float | None = Field(description="Headroom found before learning [nats per response token]")
    headroom_threshold: float | None = Field(description="Required headroom [nats per response token]")
    best_probe: str | None = Field(description="Where the headroom test found the lowest loss [text]")
    best_probe_gain: float | None = Field(description="Distance of that loss below uniform mixing [nats per response token]")
    best_probe_learnable: bool | None = Field(description="Whether learning can get there [yes or no]")
    kept_uniform: bool = Field(description="Whether uniform mixing replaced the learned shares [yes or no]")
    predicted: bool = Field(description="Whether a generator of earlier runs predicted the shares [yes or no]")
    uniform_penalty: float | None = Field(description="rho chosen by cross-validation [no unit]")
    granularity: str = Field(description="Parts of the model that have their own shares [text]")


class Mixing(Part):
    """How the experts were mixed, and the held-out loss of the result."""

    method: str = Field(description="Merge method of the recipe [text]")
    held_out_nll_merged: float | None = Field(description="Held-out loss of the chosen mixing [nats per response token]")
    held_out_nll_uniform: float | None = Field(description="Held-out loss of uniform mixing [nats per response token]")
    movement_max: float | None = Field(description="Largest change of a share in any layer [fraction, 0 to 1]")
    movement_mean: float | None = Field(description="Largest change of a share, mean over layers [fraction, 0 to 1]")
    layers: list[LayerMix] = Field(description="The layers in the model's order")
    options: MixingOptions | None = Field(None, description="Options other than shares per layer; absent if there are none")


class LayerRouting(Part):
    """Use of the routed experts of one layer on held-out rows: loads sum to one, entropy in nats."""

    load: list[float] = Field(description="Share of all choices for each routed expert, sum 1 [fraction, 0 to 1]")
    entropy: float = Field(description="Entropy of the router [nats]")
    mean_shared_weight: float | None = Field(description=(
        "Routing weight of the shared expert; null without one [fraction, 0 to 1]"))


class DroppedRow(Part):
    """A training row that contains a benchmark's problem: how it was found (see benchmarks/decontaminate.py), how it begins."""

    benchmark: str = Field(description="Name of the benchmark's file [text]")
    task_id: str = Field(description="The problem [text]")
    kind: str = Field(description="substring (a complete wording or solution) or n_gram (a run of words) [text]")
    excerpt: str = Field(description="The words that were found [text]")
    row: str = Field(description="How the row begins [text]")


class Decontamination(Part):
    """The benchmarks that the training data was searched for, and the rows that were dropped."""

    benchmarks: list[str] = Field(description="Names of the benchmarks' files [text]")
    rows_checked: int = Field(description="Rows that were searched [count]")
    dropped: list[DroppedRow] = Field(description="The rows that were dropped")


class RowComparison(Part):
    """One model's held-out loss and training against the merged model's, row by row. ``difference``: merged model minus this
    one; its interval and p-value are over rows, of one seed (see reporting/study/differences.py)."""

    model: str = Field(description="The model [text]")
    name: str = Field(description="Display name [text]")
    held_out_nll: float = Field(description="Held-out loss [nats per response token]")
    difference: float | None = Field(description=(
        "Held-out loss of the merged model minus this one's; null for the merged model itself [nats per response token]"))
    interval: tuple[float, float] | None = Field(description="95% interval of the difference [nats per response token]")
    p_value: float | None = Field(description="Two-sided p-value against no difference [fraction, 0 to 1]")
    training_tokens: float | None = Field(description="Tokens of its training [count]")
    training_flops: float | None = Field(description="Floating-point operations of its training [count]")
    reserved_nll: float | None = Field(None, description=(
        "Loss on the reserved rows; null if there are none [nats per response token]"))
    equal_tokens: bool = Field(description="Whether its training took as many tokens as the merged model's [yes or no]")
    equal_flops: bool = Field(description="Whether its training took as much floating-point work [yes or no]")


class DomainLoss(Part):
    """One model's held-out loss in one domain; ``difference``: from the base model's, over the same rows."""

    model: str = Field(description="The model [text]")
    nll: float = Field(description="Held-out loss [nats per response token]")
    interval: tuple[float, float] | None = Field(description="95% interval over rows [nats per response token]")
    difference: float | None = Field(description=(
        "Loss minus the base model's; null for the base model, and if that was not measured [nats per response token]"))
    interval_of_difference: tuple[float, float] | None = Field(description=(
        "95% interval of the difference, paired by row [nats per response token]"))

    @property
    def is_worse(self) -> bool:
        """Whether the loss is above the base model's: the whole interval of the difference is above 0."""
        return self.interval_of_difference is not None and self.interval_of_difference[0] > 0

    @property
    def is_better(self) -> bool:
        """Whether the loss is below the base model's: the whole interval of the difference is below 0."""
        return self.interval_of_difference is not None and self.interval_of_difference[1] < 0


class Domain(Part):
    """One domain of a mixture. ``learned``: whether one of its sources was trained on other than as a replay."""

    name: str = Field(description="The domain [text]")
    rows: int = Field(description="Held-out rows [count]")
    train_rows: int = Field(description="Training rows of the mixture [count]")
    learned: bool = Field(description="Whether it was trained on other than as a replay [yes or no]")
    benchmarks: list[str] = Field(description="Titles of the benchmarks that measure it [text]")
    losses: list[DomainLoss] = Field(description="Every model's held-out loss")

    def loss(self, model: str) -> DomainLoss | None:
        """A model's loss, if it was measured."""
        return next((loss for loss in self.losses if loss.model == model), None)


class TokenClassRouting(Part):
    """The shared expert's weight on one class of tokens, in the responses of held-out rows."""

    name: str = Field(description="The class [text]")
    tokens: int = Field(description="Measured tokens [count]")
    mean: list[float] = Field(description="Mean weight, by layer [fraction, 0 to 1]")
    spread: list[float] = Field(description="Its standard deviation over tokens, by layer [fraction, 0 to 1]")


class DomainRouting(Part):
    """Use of the routed experts on the held-out rows of a domain; each layer's loads sum to one."""

    domain: str = Field(description="The domain [text]")
    load: list[list[float]] = Field(description=(
        "By layer, share of all choices for each routed expert, sum 1 [fraction, 0 to 1]"))


class SourceCounts(Part):
    """Counts of a source's rows, see xft_core/store/results/mix_data.py."""

    name: str = Field(description="The source [text]")
    domain: str = Field(description="Its domain [text]")
    licence: str | None = Field(description="Licence of the data; null if none is known [text]")
    replay: bool = Field(description="Whether its rows are replayed [yes or no]")
    rows_read: int = Field(description="Rows of the source [count]")
    dropped: int = Field(description="Rows that were dropped, or that another source also has [count]")
    held_out: int = Field(description="Rows held out [count]")
    reserved: int = Field(description="Rows reserved for choices [count]")
    available: int = Field(description="Rows that can be trained on [count]")
    used: int = Field(description="Rows that are trained on [count]")
    taken: int = Field(description="Training rows, each counted as often as it is taken [count]")
    taken_tokens: int = Field(description="Their tokens [count]")


class Further(Part):
    """A step that the report has no section for."""

    role: str = Field(description="The step [text]")
    metrics: dict[str, Any] = Field(description="Its metrics, unchanged [as each name says]")


class Comparison(Part):
    """The content of the report."""

    recipe: str = Field(description="Name of the recipe [text]")
    seed: int = Field(description="Seed of the recipe [no unit]")
    benchmarks: list[str] = Field(description="Titles of the benchmarks, in the recipe's order [text]")
    skipped: dict[str, str] = Field(description="Why a benchmark could not be graded on this machine, by title [text]")
    rows: list[Row] = Field(description="The models")
    multilingual: list[Average] = Field(description="Averages over the languages of MultiPL-E")
    differences: list[Difference] = Field(description="Models against each other, by benchmark and tests")
    training_compute_ratio: float | None = Field(description=(
        "Computation of the MoE's training over that of the dense baseline [ratio]"))
    mixing: Mixing | None = Field(description="How the experts were merged")
    routing: list[LayerRouting] = Field(description="Use of the experts, in the order of the layers")
    token_classes: list[TokenClassRouting] = Field([], description="The shared expert's weight by class of token")
    expert_delta_cosine: float | None = Field(None, description=(
        "Cosine of the learned changes of two experts, mean over pairs and layers; null if it was not measured [no unit]"))
    choices: list[str] = Field([], description="Choices of the recipe that do not fit each other [text]")
    went_wrong: dict[str, list[str]] = Field(description="Problems noticed in training and mixing, by model [text]")
    data: dict[str, int] = Field(description="Counts of the prepare stage, by name [count]")
    held_out: str | None = Field(description="Digest of the rows that held_out_nll is measured on [sha256]")
    decontamination: Decontamination | None = Field(description="Search of the training data for the benchmarks' problems")
    row_comparisons: list[RowComparison] = Field([], description=(
        "Every model against the merged one, if rows were compared"))
    domains: list[Domain] = Field([], description="Results by domain, for a mixture of sources")
    domain_routing: list[DomainRouting] = Field([], description="Use of the experts by domain")
    sources: list[SourceCounts] = Field([], description="Counts of every source's rows, for a mixture")
    further: list[Further] = Field([], description="Steps of stages that were added to the pipeline")

    def row(self, model: str) -> Row | None:
        """The row of a model, if there is one."""
        return next((row for row in self.rows if row.model == model), None)


OMITTED = ("row_comparisons", "further", "domains", "domain_routing", "sources", "token_classes")  # where they are empty


class ComparisonFile(Comparison):
    """comparison.json of the report stage: the numbers, and the warnings in sentences."""

    file_name: ClassVar[str] = "comparison.json"
    warnings: list[str] = Field([], description="What a user must know before using the merged model [text]")

    def text(self) -> str:
        """The content of the file."""
        content = self.model_dump(exclude={name for name in OMITTED if not getattr(self, name)})
        if self.mixing and self.mixing.options is None:
            del content["mixing"]["options"]
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
