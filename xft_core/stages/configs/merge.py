"""The configuration of the merge stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class MergeStage(StageConfig):
    summary = "Mixture-of-Experts and mixing coefficients to a stock dense checkpoint."

    stage, version, implementation = "merge", 3, "xft_core.stages.merge"
    path_fields = frozenset({"model", "coefficients", "data"})

    model: str = Field(description="The tuned Mixture-of-Experts.")
    coefficients: Path = Field(description=f"{ARTIFACT_HELP}: mix.")
    data: Path | None = Field(None, description=f"{ARTIFACT_HELP}: prepare. To measure the merged model's held-out loss.")
    precision: Precision = Field("fp32", description="Weights and arithmetic of that measurement; give the one of sft.")

    def inputs(self) -> dict[str, Path]:
        """The Mixture-of-Experts, the coefficients and, if given, the prepared data."""
        found = {"model": find_model(self.model), "coefficients": self.coefficients}
        return found | ({"data": self.data} if self.data else {})

    def settings(self) -> dict[str, Any]:
        """The precision, which only the held-out measurement uses; nothing without data."""
        return {"precision": measuring_precision(self.precision)} if self.data else {}
