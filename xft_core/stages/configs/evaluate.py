"""The configuration of the evaluate stage: its fields, its inputs, and the settings that change its result."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.benchmarks.find import find_benchmark
from xft_core.recipe.sections import EvaluateConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP
from xft_core.stages.preconditions import Preconditions, check_sandbox, grading_versions

# Fields of the section evaluate that change verdicts. ds1000_environment does too, through its versions: see settings.
GRADING = frozenset({"min_time_limit", "time_limit_factor", "memory_limit_mb", "sandbox", "k"})


class EvaluateStage(StageConfig):
    summary = "Grade a model's answers: verdicts and pass@k."

    stage, version, implementation = "evaluate", 4, "xft_core.stages.evaluate"

    samples: Path = Field(description=f"{ARTIFACT_HELP}: generate.")
    benchmark: str = Field("demo:benchmark.jsonl", description="The benchmark the samples answer.")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Benchmark and grading.")

    def preconditions(self) -> Preconditions:
        """The benchmark, its grading toolchain, and a working sandbox."""
        return {f"benchmark {self.benchmark}": partial(find_benchmark, self.benchmark),
                f"grading {self.benchmark}": partial(grading_versions, self.benchmark, self.evaluate),
                f"sandbox for {self.benchmark}": partial(check_sandbox, self.benchmark, self.evaluate)}

    def inputs(self) -> dict[str, Path]:
        """The samples and the benchmark."""
        return {"samples": self.samples, "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """The fields that grading this benchmark uses, and the versions of its toolchain or environment (None if it is
        missing)."""
        from xft_core.benchmarks.registry import kind_of

        settings = super().settings()
        used = GRADING - kind_of(find_benchmark(self.benchmark)).unused_settings
        settings["evaluate"] = {name: value for name, value in settings["evaluate"].items() if name in used}
        settings["evaluate"]["k"] = sorted({1, *self.evaluate.k})  # in any order, and always with 1
        versions = grading_versions(self.benchmark, self.evaluate)
        return settings | ({"versions": versions} if versions else {})
