"""The plan of a comparison counts work that variants share once, as their runs do it once."""

from pathlib import Path

import pytest

from flows.commands.plan_comparison import symbolic_keys
from tests.flows.test_cli import RecipeFile, xft
from xft_core.recipe.load import load_recipe
from xft_core.recipe.steps import pipeline_steps


def shared(recipe_file: RecipeFile, *changes: str) -> set[str]:
    """Return the roles whose stages are the same in the recipe and the changed one."""
    one, other = symbolic_keys(load_recipe(recipe_file(), [])), symbolic_keys(load_recipe(recipe_file(), list(changes)))
    return {role for role in one if one[role] == other.get(role)}


def test_variants_share_what_a_field_does_not_change(recipe_file: RecipeFile) -> None:
    every = set(symbolic_keys(load_recipe(recipe_file(), [])))
    assert {step.role for step in pipeline_steps(load_recipe(recipe_file(), [])) if step.stage == "sft"} <= every
    before_merging = {role for role in every if "merged" not in role and role not in ("merge", "mix")}
    assert shared(recipe_file, "merge.method=uniform", "merge.shared_expert_weight=0.5") == before_merging
    assert shared(recipe_file) == every
    dense = {role for role in every if "base" in role} | {"prepare"}
    assert shared(recipe_file, "upcycle.num_experts=8") == dense
    assert "prepare" in shared(recipe_file, "sft.learning_rate=0.1")
    assert "prepare" not in shared(recipe_file, "data.max_length=77")


@pytest.mark.slow
def test_a_comparison_is_planned_by_its_new_stages(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = xft("plan", str(recipe_file()), "--flops", "0.1", "--grid", "merge.method=[learned,uniform]", "--grid", "seed=[0,1]",
               home=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: line.split("  ")[1:] for line in done.stdout.splitlines() if line.startswith("merge=")}
    counts = {name: [cell.strip() for cell in row if cell.strip()][:2] for name, row in rows.items()}
    assert list(counts) == [f"merge={method} seed={seed}" for method in ("learned", "uniform") for seed in (0, 1)]
    assert counts["merge=learned seed=0"][0] == counts["merge=learned seed=0"][1]
    assert all(int(counts[f"merge=uniform seed={seed}"][1]) < int(counts["merge=learned seed=0"][1]) for seed in (0, 1))
    assert "4 variants" in done.stdout


def test_a_grid_that_is_wrong_is_a_message(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = xft("plan", str(recipe_file()), "--flops", "0.1", "--grid", "upcycle.experts=[2]", home=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "upcycle.experts" in done.stderr
