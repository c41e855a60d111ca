"""The configuration of the cluster_rows stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import Precision, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class ClusterRowsStage(StageConfig):
    summary = "Group the training rows into clusters of similar prompts."

    stage, version, implementation = "cluster_rows", 1, "xft_core.stages.cluster_rows"

    model: str = Field(description="Dense model whose hidden states are used to compare prompts.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    clusters: int = Field(ge=1, le=64, description="Number of clusters.")
    seed: Seed = Field(0, description="Seed of the initial cluster centers.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")

    def inputs(self) -> dict[str, Path]:
        """The model and the prepared data."""
        return {"model": find_model(self.model), "data": self.data}

    def settings(self) -> dict[str, Any]:
        """All fields, with the precision that is actually used."""
        return super().settings() | {"precision": measuring_precision(self.precision)}
