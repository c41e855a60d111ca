"""The configuration of the merge stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class MergeStage(StageConfig):
    summary = "Merge a Mixture-of-Experts into a stock dense checkpoint, with given mixing coefficients."

    stage, version, implementation = "merge", 3, "xft_core.stages.merge"
    path_fields = frozenset({"model", "coefficients", "data", "base"})

    model: str = Field(description="The tuned Mixture-of-Experts.")
    coefficients: Path = Field(description=f"{ARTIFACT_HELP}: mix.")
    data: Path | None = Field(None, description=f"{ARTIFACT_HELP}: prepare. For measuring the merged model's held-out loss.")
    precision: Precision = Field("fp32", description="Weights and arithmetic of that measurement. Use the precision of sft.")
    base: str | None = Field(None, description=(
        "The dense model that the experts come from. Needed if the coefficients have a delta_scale."))
    export_adapter: bool = Field(False, description=(
        "Also write the merge of low-rank experts as a LoRA adapter for PEFT (adapter/), and the weights that the experts "
        "share as the model that the adapter applies to (shared_weights/)."))

    def inputs(self) -> dict[str, Path]:
        """The Mixture-of-Experts, the coefficients and, if given, the prepared data and the base model."""
        found = {"model": find_model(self.model), "coefficients": self.coefficients}
        found |= {"data": self.data} if self.data else {}
        return found | ({"base": find_model(self.base)} if self.base else {})

    def settings(self) -> dict[str, Any]:
        """The precision if there is data (only the held-out measurement uses it), and export_adapter if it is set."""
        measured = {"precision": measuring_precision(self.precision)} if self.data else {}
        return measured | ({"export_adapter": True} if self.export_adapter else {})
