"""The configuration of the generate stage: its fields, its inputs, and the settings that change its result."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.benchmarks.find import find_benchmark
from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import draws_samples, unused_in_generate
from xft_core.recipe.sections import GenerateConfig, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import model_needed, without
from xft_core.stages.preconditions import Preconditions


class GenerateStage(StageConfig):
    summary = "Generate a model's answers to the problems of one benchmark."

    stage, version, implementation = "generate", 4, "xft_core.stages.generate"

    model: str = Field(description="Any model: dense, upcycled, tuned or merged.")
    benchmark: str = Field("demo:benchmark.jsonl", description="Benchmark: a name, a file, or demo:benchmark.jsonl.")
    max_problems: int | None = Field(None, ge=1, description="Number of problems to answer, from the first on; empty for all.")
    seed: Seed = Field(0, description="Seed of sampling.")
    prompt_style: str = Field("magicoder", description="magicoder, chat or completion.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Answers to the benchmark's problems.")

    def preconditions(self) -> Preconditions:
        """The model and the benchmark."""
        return {**model_needed(self.model), f"benchmark {self.benchmark}": partial(find_benchmark, self.benchmark)}

    def inputs(self) -> dict[str, Path]:
        """The model and the benchmark."""
        return {"model": find_model(self.model), "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """All fields except the section's two prompt styles (the pipeline has chosen one of them as ``prompt_style``) and, for
        greedy decoding, the seed."""
        settings = super().settings()
        if not draws_samples(self.generate):
            del settings["seed"]
        return without(settings, "generate", ("prompt_style", "base_prompt_style", *unused_in_generate(self.generate)))
