"""The recipe's section generate."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import PromptStyle, Section, rule


class GenerateConfig(Section):
    """How the models answer the benchmark's problems."""

    form_rules: ClassVar[tuple[dict[str, Any], ...]] = (
        rule({"num_samples": {"minimum": 2}}, {"temperature": {"exclusiveMinimum": 0}}),)

    prompt_style: Literal["auto", "magicoder", "chat", "completion"] = Field("auto", description=(
        "Prompt for tuned models: auto (the form they were tuned in: data.template), magicoder (the paper's), chat (the "
        "tokenizer's template) or completion (plain code). A run warns of a form that they were not tuned in."))
    base_prompt_style: PromptStyle = Field("completion", description=(
        "Prompt for the untuned base model, which must be measured in the form it knows."))
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    num_samples: int = Field(1, ge=1, le=10_000, description="Answers per problem; more than one needs a temperature.")
    temperature: float = Field(0.0, ge=0, le=5, description="0 for greedy decoding, else the sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description=(
        "Sample from the smallest set of tokens with this probability. Plays no part at temperature 0."))
    batch_size: int = Field(16, ge=1, description="Problems answered at once.")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Arithmetic while generating.")
    backend: Literal["transformers", "vllm"] = Field("transformers", description=(
        "What computes the answers: transformers (any model) or vllm (faster on a GPU; needs an environment with vLLM, see "
        "docs/how-to/vllm.md; not for the upcycled Mixture-of-Experts, so not in a pipeline run)."))

    @model_validator(mode="after")
    def _samples_need_temperature(self) -> "GenerateConfig":
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(f"num_samples is {self.num_samples} with temperature 0: all would be equal; set a temperature")
        return self
