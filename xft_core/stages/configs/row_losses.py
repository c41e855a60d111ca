"""The configuration of the row_losses stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class RowLossesStage(StageConfig):
    summary = "Measure a model's loss on every held-out row, and the tokens and floating-point work of its training."

    stage, version, implementation = "row_losses", 2, "xft_core.stages.row_losses"
    path_fields = frozenset({"model", "data", "trained_by", "clusters"})
    added = frozenset({"clusters"})

    model: str = Field(description="Any model: dense, upcycled, tuned or merged.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")
    trained_by: dict[str, Path] = Field({}, description=(
        "The trainings behind the model: artifacts of sft and mix by name, and that of upcycle if its routers start from rows; "
        "none for a model that was not trained here."))
    clusters: Path | None = Field(None, description=f"{ARTIFACT_HELP}: cluster_rows. Needed if a training is on a cluster.")

    def inputs(self) -> dict[str, Path]:
        """The model, the prepared data, the artifacts of the model's trainings, and the clusters that they use."""
        trainings = {f"trained_by_{number}": path for number, path in enumerate(self.trained_by.values())}
        clusters = {} if self.clusters is None else {"clusters": self.clusters}
        return {"model": find_model(self.model), "data": self.data} | trainings | clusters

    def settings(self) -> dict[str, Any]:
        """The precision."""
        return {"precision": measuring_precision(self.precision)}
