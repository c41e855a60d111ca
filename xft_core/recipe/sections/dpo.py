"""The recipe section dpo."""

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Precision, Section
from xft_core.recipe.sections.generate import GenerateConfig
from xft_core.recipe.sections.sft import SftConfig


class DpoConfig(Section):
    """One more model: the merged model after direct preference optimization (DPO, arXiv 2305.18290) on its own answers to a
    benchmark, where passing answers are preferred to failing ones."""

    benchmark: str | None = Field(None, description=(
        "Problems that the merged model answers to create preferences, specified as in evaluate.benchmarks. It must not be "
        "one of those, so that no model is measured on problems that it was tuned on. Empty: no DPO."))
    num_samples: int = Field(8, ge=2, le=1000, description="Answers per problem. Plays no part without dpo.benchmark.")
    temperature: float = Field(0.8, gt=0, le=5, description=(
        "Sampling temperature of these answers. Plays no part without dpo.benchmark."))
    pairs_per_problem: int = Field(4, ge=1, le=1000, description=(
        "Maximum pairs of a passing and a failing answer per problem. Plays no part without dpo.benchmark."))
    beta: float = Field(0.1, gt=0, le=100, description=(
        "How strongly the model is kept close to the merged model. Plays no part without dpo.benchmark."))
    epochs: float = Field(1.0, gt=0, le=100, description="Passes over the pairs. Plays no part without dpo.benchmark.")
    batch_size: int = Field(16, ge=1, description="Pairs per optimizer step. Plays no part without dpo.benchmark.")
    micro_batch_size: int = Field(2, ge=1, description=(
        "Pairs per forward pass. Must divide batch_size. Plays no part without dpo.benchmark."))
    learning_rate: float = Field(5e-6, gt=0, le=1, description="Peak learning rate. Plays no part without dpo.benchmark.")
    warmup_steps: int = Field(10, ge=0, description=(
        "Optimizer steps of linear warm-up (at most a tenth of all steps). Plays no part without dpo.benchmark."))
    precision: Precision = Field("bf16_mixed", description=(
        "Precision of weights and arithmetic, as in the section sft. Plays no part without dpo.benchmark."))

    @model_validator(mode="after")
    def _batches_fit(self) -> "DpoConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) does not divide batch_size ({self.batch_size})")
        return self

    def training(self) -> SftConfig:
        """The training configuration for the trainer."""
        return SftConfig(
            epochs=self.epochs, batch_size=self.batch_size, micro_batch_size=self.micro_batch_size, packing=False,
            learning_rate=self.learning_rate, warmup_steps=self.warmup_steps, optimizer="adamw", max_grad_norm=1.0,
            precision=self.precision, log_steps=1, checkpoint_steps=50)

    def sampled(self, generate: GenerateConfig) -> GenerateConfig:
        """The sampling configuration: as for the benchmarks, but with several answers per problem."""
        return GenerateConfig(**(generate.model_dump() | {"num_samples": self.num_samples, "temperature": self.temperature}))
