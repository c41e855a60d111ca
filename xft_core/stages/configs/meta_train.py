"""The configuration of the meta-train stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.sections import Section, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class MixingRun(Section):
    """An earlier run that the generator learns from."""

    mix: Path = Field(description=f"{ARTIFACT_HELP}: mix, with method learned and merge.keep_features or a generator.")
    model: str = Field(description="The tuned Mixture-of-Experts of that run.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare, of that run.")


class MetaTrainStage(StageConfig):
    # Not part of the pipeline: it is about several runs.
    summary = "Train a generator of mixing coefficients on the expert features and learned coefficients of earlier runs."

    stage, version, implementation = "meta-train", 1, "xft_core.stages.meta_train"
    path_fields = frozenset({"runs"})

    runs: list[MixingRun] = Field(min_length=1, description="The earlier runs.")
    generator: Literal["attention", "graph"] = Field("attention", description="Kind of generator: see merge.generator.")
    seed: Seed = Field(0, description="Seed of the generator's initial weights.")
    steps: int = Field(500, ge=1, le=1_000_000, description="Optimizer steps, each over all runs.")
    learning_rate: float = Field(0.01, gt=0, le=10, description="AdamW's learning rate.")
    leave_one_out: bool = Field(True, description=(
        "Also train without each run in turn, and measure what the prediction gains on that run. Plays no part with one run."))
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Weights and arithmetic of these measurements.")

    def inputs(self) -> dict[str, Path]:
        """The artifacts and the model of every run."""
        found: dict[str, Path] = {}
        for number, run in enumerate(self.runs):
            found |= {f"mix_{number}": run.mix, f"model_{number}": find_model(run.model), f"data_{number}": run.data}
        return found

    def settings(self) -> dict[str, Any]:
        """All fields except the paths of the runs."""
        settings = super().settings()
        if not self.measures:
            del settings["leave_one_out"], settings["precision"]
        return settings

    @property
    def measures(self) -> bool:
        """Whether the gain of the predictions is measured."""
        return self.leave_one_out and len(self.runs) > 1
