"""The configurations of report and compare: the artifacts that they read and the recipe settings that they show."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.recipe.sections import PROCESS_FIELDS, Recipe
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import without


class _AboutRecipe(StageConfig):
    """A stage that shows a recipe in its result."""

    recipe: Recipe = Field(description="The recipe of the run or, for a comparison, the recipe that all variants start from.")

    def settings(self) -> dict[str, Any]:
        """All fields except those that no report shows: MLflow's experiment, the model registry, whether the recipe was
        checked against the machine, and the number of training processes."""
        settings = without(super().settings(), "recipe", ("experiment", "registry", "check_fit"))
        return settings | {"recipe": without(settings["recipe"], "sft", PROCESS_FIELDS)}


class ReportStage(_AboutRecipe):
    summary = "Write the comparison table, plots, model card and page of all answers from the other stages' artifacts."

    stage, version, implementation = "report", 4, "xft_core.stages.report"
    path_fields = frozenset({"artifacts"})

    artifacts: dict[str, Path] = Field(description="Published artifacts by role, for example sft_moe, evaluate_merged_0.")

    def inputs(self) -> dict[str, Path]:
        """Every artifact in the report."""
        return dict(self.artifacts)


class CompareStage(_AboutRecipe):
    summary = "Compare variants of a recipe, using only their reports."

    stage, version, implementation = "compare", 4, "xft_core.stages.compare"
    path_fields = frozenset({"reports"})

    grid: list[str] = Field(description="The fields that vary: section.field=[value, value], see xft_core/recipe/grid.py.")
    reports: dict[str, Path] = Field(description="Report of each variant, by name; failed variants are left out.")

    def inputs(self) -> dict[str, Path]:
        """Every variant's report."""
        return dict(self.reports)
