"""Results of the generate stage."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class GenerateMetrics(Metrics):
    """How many answers a model gave, and how fast."""

    problems: int | None = Field(description="Problems of the benchmark that were asked [count]")
    samples: int | None = Field(description="Answers to all problems together [count]")
    new_tokens: int | None = Field(description="Tokens that the model wrote [count]")
    truncated: int | None = Field(description="Answers that were cut off at generate.max_new_tokens [count]")
    prompt_too_long: int | None = Field(description="Answers that were not asked for: the prompt leaves no room [count]")
    seconds: float | None = Field(description="Duration of the start that finished the stage [seconds]")
    problems_per_minute: float | None = Field(description="Speed of the start that finished the stage [problems per minute]")
