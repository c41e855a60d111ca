"""The recipe's section merge."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from xft_core.recipe.sections.base import MergeMethod, Section


class MergeConfig(Section):
    """How the experts become one dense model: W = lambda W_0 + (1 - lambda) sum_i softmax(alpha)_i W_i per layer."""

    added: ClassVar[frozenset[str]] = frozenset({"export_adapter"})

    method: MergeMethod = Field("learned", description=(
        "learned (alpha by gradient), uniform (equal alpha), routing (mean routing weights on training data), "
        "ewa, also called mean (mean of all experts, afterwards: what EWA, arXiv 2308.06093, ends with; sft.expert_averaging "
        "averages while training), shared_only (the shared expert alone)."))
    shared_expert_weight: float | None = Field(0.75, ge=0, le=1, description=(
        "lambda, the shared expert's share; empty: learned too, from 0.75 (method learned only). Plays no part in "
        "the methods routing, ewa and shared_only, nor without a shared expert."))
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
        "Training rows that method routing averages over. Plays no part in other methods."))
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Weights and arithmetic while learning alpha.")
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
        if self.shared_expert_weight is None and self.method == "uniform":
            raise ValueError("shared_expert_weight is empty (learned), but method is uniform: give a number, 0 to 1")
        return self
