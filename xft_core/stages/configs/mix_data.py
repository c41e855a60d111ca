"""The configuration of the mix_data stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from xft_core.recipe.sections import Section, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class MixedSource(Section):
    """A mixture's settings for one of its sources, see xft_core/recipe/sections/data.py."""

    weight: float | None = Field(None, ge=0, description="Share of the training rows, relative to the other sources' weights.")
    rows: int | None = Field(None, ge=1, description="Exact number of training rows to take.")
    replay: bool = Field(False, description="Whether the source's rows belong to the replay share.")
    trained: bool = Field(True, description="Whether the source's rows are trained on. If not, the source is only measured.")


class MixDataStage(StageConfig):
    summary = "Combine prepared sources into one mixture: training rows by weight, held-out rows of each source."

    stage, version, implementation = "mix_data", 1, "xft_core.stages.mix_data"
    needs_torch = False
    path_fields: ClassVar[frozenset[str]] = frozenset({"prepared"})

    prepared: dict[str, Path] = Field(description=f"{ARTIFACT_HELP}, for each source by its position from 0: prepare.")
    sources: list[MixedSource] = Field(description="Settings of each source.")
    temperature: float = Field(1.0, ge=1, description="T: shares are raised to the power 1/T.")
    replay: float = Field(0.0, ge=0, lt=1, description="Share of the training rows that comes from the sources with replay.")
    max_rows: int | None = Field(None, ge=2, description="Total training rows of all sources; empty for as many as there are.")
    seed: Seed = Field(0, description="Seed of the order of the mixed rows.")

    def inputs(self) -> dict[str, Path]:
        """Every source's prepared rows."""
        return {f"source_{int(place):06}": path for place, path in self.prepared.items()}
