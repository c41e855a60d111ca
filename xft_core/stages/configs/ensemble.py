"""The configuration of the ensemble stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class EnsembleStage(StageConfig):
    summary = "Combine whole dense models into one: as a greedy soup, or with learned shares."

    stage, version, implementation = "ensemble", 1, "xft_core.stages.ensemble"
    path_fields = frozenset({"models", "data"})

    models: dict[str, str] = Field(min_length=1, description=(
        "Dense models of one architecture, by name. Everything but the weights comes from the last model."))
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    method: Literal["greedy", "learned"] = Field(description="How the models' shares are chosen.")
    split: Literal["train", "reserved"] = Field("train", description=(
        "Rows that shares are chosen on: train, or reserved (rows that no model was trained on)."))
    rows: int = Field(256, ge=1, description="Number of rows that shares are chosen on; never the reported rows.")
    steps: int = Field(20, ge=1, description="Optimizer steps for learning the shares. Plays no part in greedy.")
    learning_rate: float = Field(0.1, gt=0, description=(
        "Adam's learning rate for the logits of the shares. Plays no part in greedy."))
    precision: Precision = Field("fp32", description="Weights and arithmetic of the measurements. Use the precision of sft.")

    def inputs(self) -> dict[str, Path]:
        """The models and the prepared data."""
        return {f"model_{number}": find_model(name) for number, name in enumerate(self.models.values())} | {"data": self.data}

    def settings(self) -> dict[str, Any]:
        """The fields that the method uses, and the models' names, which the result lists the shares by."""
        unused = ("steps", "learning_rate") if self.method == "greedy" else ()
        found = {name: value for name, value in super().settings().items() if name not in unused}
        return found | {"names": list(self.models), "precision": measuring_precision(self.precision)}
