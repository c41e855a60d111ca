"""Soups at seeds that are too close are told of, and only these."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xft_core.recipe.dense_steps import baseline_steps
from xft_core.recipe.grid import expand
from xft_core.recipe.sections import Recipe
from xft_core.recipe.shared_trainings import shared_by_arms, shared_by_variants, shared_trainings
from xft_core.recipe.study import StudyConfig, reported_runs


def trainings(recipe: Recipe) -> set[int]:
    """Seeds of the trainings of a recipe's soup."""
    return {step.given["seed"] for step in baseline_steps(recipe) if step.stage == "sft"}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True), st.integers(2, 6))
def test_what_is_said_agrees_with_the_trainings_that_the_recipe_makes(seeds: list[int], size: int) -> None:
    soups = [trainings(Recipe(seed=seed, baseline={"runs": size})) for seed in seeds]
    share = sum(map(len, soups)) > len(set.union(*soups))
    assert all(len(soup) == size for soup in soups)
    assert (shared_trainings(seeds, size) is not None) == share


def test_the_seeds_that_are_proposed_share_nothing() -> None:
    said = shared_trainings([5, 3, 4], 3)
    assert said and "seeds 3 and 4 share 2 of their 3 trainings" in said and said.endswith("3, 6, 9.")
    assert shared_trainings([3, 6, 9], 3) is None


@pytest.mark.parametrize(("arm", "close"), [
    ({"model": "sft_soup", "overrides": ["baseline.runs=3"]}, True),
    ({"overrides": ["baseline.runs=3"], "tuning": {"model": ["sft", "sft_soup"]}}, False),  # takes the plain SFT
    ({"model": "sft", "overrides": ["baseline.runs=3"]}, False),
    ({"model": "sft_soup", "overrides": ["baseline.runs=2"]}, False)])
def test_only_arms_that_are_soups_are_named(arm: dict[str, Any], close: bool) -> None:
    study = StudyConfig.model_validate({
        "name": "small", "question": "?", "recipe": "recipe.yaml", "seeds": [0, 2], "arms": {"mine": arm, "merged": {}}})
    variants, runs = reported_runs(study, Recipe())
    found = shared_by_arms(study, runs, variants)
    assert len(found) == close and all(text.startswith("Arm `mine`: the soups at seeds 0 and 2 share 1") for text in found)


def test_a_comparison_names_each_size_of_soup_once() -> None:
    grid = ["upcycle.num_experts=[8,12]", "baseline.runs=[1,3]", "seed=[0,1]"]
    [said] = shared_by_variants(expand(Recipe(), grid))
    assert said.startswith("the soups at seeds 0 and 1 share 2 of their 3 trainings")
    assert not shared_by_variants(expand(Recipe(baseline={"runs": 3}), ["seed=[0,3]"]))
    assert not shared_by_variants(expand(Recipe(baseline={"enabled": False}), ["seed=[0,1]"]))
