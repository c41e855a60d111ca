"""The configuration of the choose_checkpoint stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.sections import MergeConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class ChooseCheckpointStage(StageConfig):
    summary = "Choose the training step at which a Mixture-of-Experts merges best on reserved rows."

    stage, version, implementation = "choose_checkpoint", 1, "xft_core.stages.choose_checkpoint"
    path_fields = frozenset({"models", "data"})

    models: dict[str, str] = Field(min_length=1, description=(
        "The Mixtures-of-Experts of one training, by name and in the order of training."))
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare, with reserved rows.")
    merge: MergeConfig = Field(MergeConfig(), description="How the experts are merged into one dense model.")

    def inputs(self) -> dict[str, Path]:
        """The models and the prepared data."""
        return {f"model_{number}": find_model(name) for number, name in enumerate(self.models.values())} | {"data": self.data}

    def settings(self) -> dict[str, Any]:
        """The settings that a uniform merge uses."""
        return {"shared_expert_weight": self.merge.shared_expert_weight, "precision": self.merge.precision}
