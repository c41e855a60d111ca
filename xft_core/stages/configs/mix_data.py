"""The configuration of the mix_data stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from xft_core.recipe.sections import Section, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class MixedSource(Section):
    """What a mixture says of one of its sources, see xft_core/recipe/sections/data.py."""

    weight: float | None = Field(None, ge=0, description="Share of the training rows, relative to the others' weights.")
    rows: int | None = Field(None, ge=1, description="Training rows to take, exactly.")
    replay: bool = Field(False, description="Whether its rows are of the share that is replayed.")
    trained: bool = Field(True, description="Whether any row of it is trained on; else it is only measured.")


class MixDataStage(StageConfig):
    summary = "Prepared sources to one mixture: training rows by weights, held-out rows of each source."

    stage, version, implementation = "mix_data", 1, "xft_core.stages.mix_data"
    needs_torch = False
    path_fields: ClassVar[frozenset[str]] = frozenset({"prepared"})

    prepared: dict[str, Path] = Field(description=f"{ARTIFACT_HELP}, by the source's place from 0: prepare.")
    sources: list[MixedSource] = Field(description="What is said of each source.")
    temperature: float = Field(1.0, ge=1, description="T: shares are to the power 1/T.")
    replay: float = Field(0.0, ge=0, lt=1, description="Share of the training rows of the sources with replay.")
    max_rows: int | None = Field(None, ge=2, description="Training rows of all sources together; empty: as many as there are.")
    seed: Seed = Field(0, description="Seed of the order in which the sources' rows are put.")

    def inputs(self) -> dict[str, Path]:
        """Every source's prepared rows."""
        return {f"source_{int(place):06}": path for place, path in self.prepared.items()}
