"""The configuration of the upcycle stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import unused_in_upcycle
from xft_core.recipe.sections import Seed, UpcycleConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import model_needed, without
from xft_core.stages.preconditions import Preconditions


class UpcycleStage(StageConfig):
    summary = "Dense model to Mixture-of-Experts."

    stage, version, implementation = "upcycle", 1, "xft_core.stages.upcycle"

    model: str = Field("demo:model", description="Dense model: directory, Hub name or demo:model.")
    seed: Seed = Field(0, description="Seed of the router's weights.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="Dense model to Mixture-of-Experts.")

    def preconditions(self) -> Preconditions:
        """The dense model."""
        return model_needed(self.model)

    def inputs(self) -> dict[str, Path]:
        """The dense model."""
        return {"model": find_model(self.model)}

    def settings(self) -> dict[str, Any]:
        """Without fields that are unused at these settings."""
        return without(super().settings(), "upcycle", unused_in_upcycle(self.upcycle))
