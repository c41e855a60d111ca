"""The configuration of the average_models stage: its fields, its inputs, and the settings that change its result."""

import math
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class AverageModelsStage(StageConfig):
    summary = "Average whole dense models: soups of several trainings, steps back towards the base model."

    stage, version, implementation = "average_models", 2, "xft_core.stages.average_models"
    path_fields = frozenset({"models", "data"})

    models: dict[str, str] = Field(description=(
        "Dense models of one architecture, by name. Everything but the weights comes from the last model."))
    weights: dict[str, float] = Field(description="Weight of each model; the weights sum to 1.")
    data: Path | None = Field(None, description=f"{ARTIFACT_HELP}: prepare. For measuring the result's held-out loss.")
    precision: Precision = Field("fp32", description="Weights and arithmetic of that measurement. Use the precision of sft.")

    @model_validator(mode="after")
    def _weights_fit(self) -> "AverageModelsStage":
        if list(self.models) != list(self.weights) or not self.models:
            raise ValueError(
                f"weights are for {', '.join(self.weights)}, but models are {', '.join(self.models)}: use the same names")
        total = math.fsum(self.weights.values())
        if not math.isclose(total, 1, rel_tol=1e-9):
            raise ValueError(f"the weights sum to {total:g}: they must sum to 1")
        return self

    def inputs(self) -> dict[str, Path]:
        """The models and, if given, the prepared data."""
        found = {f"model_{number}": find_model(name) for number, name in enumerate(self.models.values())}
        return found | ({"data": self.data} if self.data else {})

    def settings(self) -> dict[str, Any]:
        """The weights in order, without the models' names. The precision counts only if there is data to measure on."""
        measured = {"precision": measuring_precision(self.precision)} if self.data else {}
        return {"weights": list(self.weights.values())} | measured
