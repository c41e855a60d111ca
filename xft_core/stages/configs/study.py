"""The configuration of the study stage."""

from pathlib import Path

from pydantic import Field

from xft_core.recipe.sections import Recipe
from xft_core.recipe.study import StudyConfig
from xft_core.stages.base import StageConfig


class StudyStage(StageConfig):
    summary = "Judge a study's ladder of claims, using only the reports of its runs."

    stage, version, implementation = "study", 2, "xft_core.stages.study"
    path_fields = frozenset({"reports"})

    study: StudyConfig = Field(description="The study.")
    recipe: Recipe = Field(description="The recipe that all arms share.")
    reports: dict[str, Path] = Field(description="Report of each run, by name; failed runs are left out.")
    failures: dict[str, str] = Field({}, description="Reasons why runs failed, by run name.")

    def inputs(self) -> dict[str, Path]:
        """Every run's report."""
        return dict(self.reports)
