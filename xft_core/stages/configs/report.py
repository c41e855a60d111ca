"""The configurations of report and compare: which artifacts they read, and which settings of the recipe they show."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.recipe.sections import PROCESS_FIELDS, Recipe
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import without


class _AboutRecipe(StageConfig):
    """A stage whose result shows a recipe."""

    recipe: Recipe = Field(description="The recipe of the run; of a comparison, the one that all variants start from.")

    def settings(self) -> dict[str, Any]:
        """Without what no report shows: MLflow's experiment, where the model is registered, whether the recipe was checked
        against the machine, and how many processes trained."""
        settings = without(super().settings(), "recipe", ("experiment", "registry", "check_fit"))
        return settings | {"recipe": without(settings["recipe"], "sft", PROCESS_FIELDS)}


class ReportStage(_AboutRecipe):
    summary = "Comparison table, plots, model card and a page of all answers, from what the other stages left."

    stage, version, implementation = "report", 3, "xft_core.stages.report"
    path_fields = frozenset({"artifacts"})

    artifacts: dict[str, Path] = Field(description="Published stages by role, for example sft_moe, evaluate_merged_0.")

    def inputs(self) -> dict[str, Path]:
        """Every artifact reported on."""
        return dict(self.artifacts)


class CompareStage(_AboutRecipe):
    summary = "Variants of a recipe side by side, from their reports alone."

    stage, version, implementation = "compare", 3, "xft_core.stages.compare"
    path_fields = frozenset({"reports"})

    grid: list[str] = Field(description="What varies: section.field=[value, value], see xft_core/recipe/grid.py.")
    reports: dict[str, Path] = Field(description="Report of each variant by its name; one that failed is left out.")

    def inputs(self) -> dict[str, Path]:
        """Every variant's report."""
        return dict(self.reports)
