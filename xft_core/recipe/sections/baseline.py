"""The recipe section baseline."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from xft_core.recipe.sections.base import Section, WeightAverage
from xft_core.recipe.sections.sft import OF_ROUTERS, Adapter, SftConfig
from xft_core.recipe.sections.upcycle import UpcycleConfig

Match = Literal["epochs", "tokens", "flops"]
OF_SFT = ("epochs", "learning_rate", "warmup_steps", "adapter")  # fields that replace those of the section sft


def _listed(value: Any) -> Any:
    """Turn a single value into a list."""
    return [] if value is None else value if isinstance(value, list | tuple) else [value]


class WorkToMatch(Section):
    """The training whose tokens or floating-point work a baseline must match: that of a Mixture-of-Experts, of its mixing, of
    the dense models that it starts from and of the start of its routers."""

    added: ClassVar[frozenset[str]] = frozenset({"cross_validation", "distills", "router_start"})

    kind: Literal["tokens", "flops"] = Field(description="Quantity to match.")
    runs: int = Field(1, description="Number of trainings that it is split over.")
    upcycle: UpcycleConfig | None = Field(None, description="The Mixture-of-Experts; empty if only tokens count.")
    epochs: float = Field(description="Passes over the rows to tune the Mixture-of-Experts; 0 for none.")
    max_steps: int | None = Field(None, description="Maximum optimizer steps of that tuning.")
    dense_epochs: float = Field(0.0, description="Passes over the rows to tune dense models before upcycling.")
    mixing_epochs: float = Field(0.0, description="Passes over the rows to learn coefficients; 0 if none are learned.")
    mixing_max_steps: int | None = Field(None, description="Maximum optimizer steps of learning coefficients.")
    mixing_batch_size: int = Field(1, description="Sequences per optimizer step of learning coefficients.")
    cross_validation: bool = Field(False, description="Whether coefficients are also learned to choose their penalty.")
    distills: bool = Field(False, description="Whether coefficients are learned from the Mixture-of-Experts.")
    router_start: Literal["random", "ridge", "trained"] = Field("random", description="The start of the routers.")


class BaselineConfig(Section):
    """The control: plain SFT of the dense model, and rivals, which are other uses of the same work. All other training fields
    come from the section sft."""

    added: ClassVar[frozenset[str]] = frozenset({
        "average", "average_count", "runs", "wise", "match", "evaluate_rivals", "adapter"})

    enabled: bool = Field(True, description="Also train and evaluate the dense baseline.")
    epochs: float | None = Field(None, gt=0, le=1000, description="Passes over the rows; empty: as in sft.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="Peak learning rate; empty: as in sft.")
    warmup_steps: int | None = Field(None, ge=0, description="Warm-up steps; empty: as in sft.")
    adapter: Adapter | None = Field(None, description=(
        "lora or none, as for sft.adapter, with the rank and scale of the section sft; empty: as in sft."))
    average: WeightAverage = Field("none", description=(
        "Rival: the baseline's weights averaged over its training: last_k (mean of the last average_count of checkpoints "
        "spaced evenly over the last 40% of the steps), ema (exponential moving average with decay 1 - 1/(0.1 steps), "
        "bias-corrected) or none. It costs one copy of the weights and no training."))
    average_count: int = Field(5, ge=1, le=1000, description=(
        "Checkpoints that last_k averages. Plays no part in other averages."))
    runs: int = Field(1, ge=1, le=64, description=(
        "Rival: the mean of the weights of this many baselines (a soup, arXiv 2203.05482), trained with seeds seed, seed + 1 "
        "and so on, each with its own order of the data; 1 for none. 4 runs cost about as much as XFT's training."))
    wise: Annotated[list[Annotated[float, Field(ge=0, le=2)]], BeforeValidator(_listed)] = Field([], description=(
        "Rivals: base + g (tuned - base) for each of these g (WiSE-FT, arXiv 2109.01903), for the baseline, its average and "
        "the soup. They cost no training. 0 is the base model, 1 the tuned one. Empty for none."))
    match: Annotated[list[Match], BeforeValidator(_listed)] = Field(["epochs"], min_length=1, description=(
        "How long the baseline trains: epochs (as set here or in sft), tokens (as many tokens as tuning the "
        "Mixture-of-Experts and learning its coefficients take) or flops (as much floating-point work as these). The runs of "
        "a soup share tokens and work. With several values, the first sets the baseline, and each of the others adds a rival "
        "with its own averages and soups."))
    evaluate_rivals: bool = Field(False, description=(
        "Rivals also answer the benchmarks, and are measured on evaluate.held_out_data and lm-eval tasks. Off: only their "
        "held-out loss is measured."))

    @property
    def has_rivals(self) -> bool:
        """Whether there are rivals besides the plain baseline."""
        rivals = self.average != "none" or self.runs > 1 or bool(self.wise) or self.match != ["epochs"]
        return self.enabled and rivals

    def applied_adapter(self, sft: SftConfig) -> Adapter:
        """The baseline's adapter: its own, or that of ``sft``."""
        return self.adapter or sft.adapter

    def applied_to(self, sft: SftConfig) -> SftConfig:
        """The baseline's SFT configuration: ``sft`` with the fields set here, and with neutral values for the fields about
        experts. A dense model has no experts, so these must not make two otherwise equal baselines differ."""
        changes = {name: value for name in OF_SFT if (value := getattr(self, name)) is not None}
        changes |= OF_ROUTERS | {"expert_averaging": 0.0, "expert_learning_rate_factor": 1.0}
        changes |= {"merge_at": "last", "merge_checkpoints": 4}
        changes |= {"average": self.average, "average_count": self.average_count}
        return SftConfig(**(sft.model_dump() | changes))

    @model_validator(mode="after")
    def _rivals_fit(self) -> "BaselineConfig":
        for name in ("wise", "match"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names {next(value for value in values if values.count(value) > 1)} twice")
        if self.epochs is not None and "epochs" not in self.match:
            raise ValueError(
                f"epochs is {self.epochs:g}, but match is {', '.join(self.match)}, which decides how long the baseline trains: "
                "leave epochs empty, or add epochs to match")
        if self.adapter == "qlora":
            raise ValueError("adapter is qlora, which needs 4-bit kernels that are not available on a CPU: use lora")
        if self.adapter == "lora" and self.average != "none":
            raise ValueError(
                f"adapter is lora, but average is {self.average}, and only the adapters of earlier steps are stored: set "
                "average to none")
        if not self.enabled and (self.average != "none" or self.runs > 1 or self.wise or self.match != ["epochs"]):
            raise ValueError("average, runs, wise and match create rivals of the baseline, but enabled is false: turn it on")
        return self
