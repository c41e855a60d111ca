"""The recipe section generate."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import PromptStyle, Section, rule


class GenerateConfig(Section):
    """How the models answer the benchmark's problems."""

    form_rules: ClassVar[tuple[dict[str, Any], ...]] = (
        rule({"num_samples": {"minimum": 2}}, {"temperature": {"exclusiveMinimum": 0}}),)

    prompt_style: Literal["auto", "magicoder", "chat", "completion"] = Field("auto", description=(
        "Prompt for tuned models: auto (the style they were tuned in: data.template), magicoder (the paper's), chat (the "
        "tokenizer's template) or completion (plain code). A run warns about a style that the models were not tuned in."))
    base_prompt_style: PromptStyle = Field("completion", description=(
        "Prompt for the untuned base model, which must be measured in the style that it knows."))
    max_new_tokens: int = Field(512, ge=1, description="Maximum length of an answer, in tokens.")
    num_samples: int = Field(1, ge=1, le=10_000, description="Answers per problem; more than one needs a temperature above 0.")
    temperature: float = Field(0.0, ge=0, le=5, description="Sampling temperature; 0 for greedy decoding.")
    top_p: float = Field(1.0, gt=0, le=1, description=(
        "Sample from the smallest set of tokens with this total probability. Plays no part at temperature 0."))
    batch_size: int = Field(16, ge=1, description="Answers written in parallel. More are faster and take more memory.")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Precision of the arithmetic during generation.")
    backend: Literal["transformers", "vllm"] = Field("transformers", description=(
        "Engine that computes the answers: transformers (any model) or vllm (faster on a GPU; needs an environment with "
        "vLLM, see docs/how-to/vllm.md; cannot run the upcycled Mixture-of-Experts, so not available in a pipeline run)."))

    @model_validator(mode="after")
    def _samples_need_temperature(self) -> "GenerateConfig":
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(f"num_samples is {self.num_samples} with temperature 0: all would be equal; raise the temperature")
        return self
