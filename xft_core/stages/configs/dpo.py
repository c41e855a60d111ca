"""The configuration of the dpo stage: its fields, its inputs, and the settings that change its result."""

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
    summary = "Tune a dense model by direct preference optimization on its passing and failing answers."

    stage, version, implementation = "dpo", 3, "xft_core.stages.dpo"
    path_fields = frozenset({"model", "data", "samples", "verdicts", "benchmark"})

    model: str = Field(description="Dense model to tune.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare. Used for the held-out loss.")
    samples: Path = Field(description=f"{ARTIFACT_HELP}: generate. The answers.")
    verdicts: Path = Field(description=f"{ARTIFACT_HELP}: evaluate. The verdicts on the answers.")
    benchmark: str = Field(description="The benchmark that was answered.")
    prompt_style: PromptStyle = Field("magicoder", description="The prompt style in which the benchmark was asked.")
    seed: Seed = Field(0, description="Seed for choosing and ordering the pairs.")
    dpo: DpoConfig = Field(DpoConfig(), description="Direct preference optimization.")
    checks: ChecksConfig = Field(ChecksConfig(), description="Conditions that stop the training.")

    def preconditions(self) -> Preconditions:
        """The benchmark and its grading toolchain: a benchmark that is skipped here has no verdicts."""
        return {f"benchmark {self.benchmark}": partial(find_benchmark, self.benchmark),
                f"verdicts on {self.benchmark}": partial(check_is_graded, self.benchmark)}

    def inputs(self) -> dict[str, Path]:
        """The model, the prepared data, the answers, the verdicts and the benchmark."""
        return {"model": find_model(self.model), "data": self.data, "samples": self.samples, "verdicts": self.verdicts,
                "benchmark": find_benchmark(self.benchmark)}

    def settings(self) -> dict[str, Any]:
        """All fields except checks and the sampling settings of the answers, which the digest of the answers covers."""
        settings = super().settings()
        del settings["checks"]
        for name in ("benchmark", "num_samples", "temperature"):
            settings["dpo"].pop(name, None)
        return settings
