"""The configuration of the dpo stage: its fields, its inputs, and which settings change its result."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.benchmarks.find import find_benchmark
from xft_core.files.locate import find_model
from xft_core.recipe.sections import ChecksConfig, DpoConfig, PromptStyle, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP
from xft_core.stages.preconditions import Preconditions, check_is_graded


class DpoStage(StageConfig):
    summary = "Direct preference optimization of a dense model on answers that pass and answers that fail."

    stage, version, implementation = "dpo", 3, "xft_core.stages.dpo"
    path_fields = frozenset({"model", "data", "samples", "verdicts", "benchmark"})

    model: str = Field(description="Dense model to tune.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare. For the held-out loss.")
    samples: Path = Field(description=f"{ARTIFACT_HELP}: generate. The answers.")
    verdicts: Path = Field(description=f"{ARTIFACT_HELP}: evaluate. Their verdicts.")
    benchmark: str = Field(description="The benchmark that they answer.")
    prompt_style: PromptStyle = Field("magicoder", description="The form in which it was asked.")
    seed: Seed = Field(0, description="Seed of the choice of pairs and of their order.")
    dpo: DpoConfig = Field(DpoConfig(), description="Direct preference optimization.")
    checks: ChecksConfig = Field(ChecksConfig(), description="What stops the training.")

    def preconditions(self) -> Preconditions:
        """The benchmark, and what it is graded with: one that is skipped here has no verdicts."""
        return {f"benchmark {self.benchmark}": partial(find_benchmark, self.benchmark),
                f"verdicts on {self.benchmark}": partial(check_is_graded, self.benchmark)}

    def inputs(self) -> dict[str, Path]:
        """The model, the prepared data, answers, verdicts and the benchmark."""
        return {"model": find_model(self.model), "data": self.data, "samples": self.samples, "verdicts": self.verdicts,
                "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """Without what the answers were drawn by, which their digest covers, and checks."""
        settings = super().settings()
        del settings["checks"]
        for name in ("benchmark", "num_samples", "temperature"):
            settings["dpo"].pop(name, None)
        return settings
