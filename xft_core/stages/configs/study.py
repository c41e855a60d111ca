"""The configuration of the study stage."""

from pathlib import Path

from pydantic import Field

from xft_core.recipe.sections import Recipe
from xft_core.recipe.study import StudyConfig
from xft_core.stages.base import StageConfig


class StudyStage(StageConfig):
    summary = "A study's ladder of claims, from the reports of its runs alone."

    stage, version, implementation = "study", 1, "xft_core.stages.study"
    path_fields = frozenset({"reports"})

    study: StudyConfig = Field(description="The study.")
    recipe: Recipe = Field(description="The recipe that all arms share.")
    reports: dict[str, Path] = Field(description="Report of each run by its name; one that failed is left out.")
    failures: dict[str, str] = Field({}, description="Why runs failed, by their names.")

    def inputs(self) -> dict[str, Path]:
        """Every run's report."""
        return dict(self.reports)
