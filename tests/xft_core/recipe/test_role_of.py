"""Find the step of a run that builds or measures something: readers of artifacts ask for it instead of naming roles."""

import pytest

from xft_core.recipe.sections import BaselineConfig, Recipe
from xft_core.recipe.steps import role_of


def test_roles_by_stage_and_model() -> None:
    recipe = Recipe()
    assert role_of(recipe, "merge") == "merge"
    assert role_of(recipe, "sft", "moe") == "sft_moe"
    assert role_of(recipe, "sft", "sft") == "sft_baseline"
    assert role_of(recipe, "evaluate", "merged") == "evaluate_merged_0"  # on the first benchmark


def test_a_step_that_the_run_does_not_have_is_named() -> None:
    with pytest.raises(LookupError, match="sft for sft"):
        role_of(Recipe(baseline=BaselineConfig(enabled=False)), "sft", "sft")
