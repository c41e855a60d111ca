"""The configuration of the cluster_rows stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class ClusterRowsStage(StageConfig):
    summary = "The training rows in clusters of alike prompts."

    stage, version, implementation = "cluster_rows", 1, "xft_core.stages.cluster_rows"

    model: str = Field(description="Dense model whose hidden states say which prompts are alike.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    clusters: int = Field(ge=1, le=64, description="How many clusters.")
    seed: Seed = Field(0, description="Seed of where the clusters start.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")

    def inputs(self) -> dict[str, Path]:
        """The model and the prepared data."""
        return {"model": find_model(self.model), "data": self.data}

    def settings(self) -> dict[str, Any]:
        """With the precision that it comes to."""
        return super().settings() | {"precision": measuring_precision(self.precision)}
