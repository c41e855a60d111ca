"""The configuration of the ensemble stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class EnsembleStage(StageConfig):
    summary = "Whole dense models to one: a greedy soup, or learned shares of each."

    stage, version, implementation = "ensemble", 1, "xft_core.stages.ensemble"
    path_fields = frozenset({"models", "data"})

    models: dict[str, str] = Field(min_length=1, description=(
        "Dense models of one architecture by name; all but weights is the last one's."))
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    method: Literal["greedy", "learned"] = Field(description="How members get their shares.")
    split: Literal["train", "reserved"] = Field("train", description=(
        "Rows that shares are chosen on: train, or reserved (rows that no member was trained on)."))
    rows: int = Field(256, ge=1, description="Shares are chosen on this many rows, never on those that are reported.")
    steps: int = Field(20, ge=1, description="Steps of learning the shares. Plays no part in greedy.")
    learning_rate: float = Field(0.1, gt=0, description="Adam's, of the shares' logits. Plays no part in greedy.")
    precision: Precision = Field("fp32", description="Weights and arithmetic of measuring; give the one of sft.")

    def inputs(self) -> dict[str, Path]:
        """The models and the prepared data."""
        return {f"model_{number}": find_model(name) for number, name in enumerate(self.models.values())} | {"data": self.data}

    def settings(self) -> dict[str, Any]:
        """The names of the models too: the result tells shares by them."""
        unused = ("steps", "learning_rate") if self.method == "greedy" else ()
        found = {name: value for name, value in super().settings().items() if name not in unused}
        return found | {"names": list(self.models), "precision": measuring_precision(self.precision)}
