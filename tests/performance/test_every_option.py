"""The script that runs every option past the paper has them all, and each is a valid recipe."""

from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from performance.every_option import FEW_ROWS, GRIDS
from xft_core.recipe.grid import expand, parse_grid
from xft_core.recipe.load import load_recipe
from xft_core.recipe.sections import Recipe

RECIPE = Path("deployments/recipes/smollm2_cpu.yaml")
# How a run computes and what it writes, not what it computes; clusters and domains need more or other rows; qlora needs a GPU.
ELSEWHERE = {
    "upcycle.store_experts", "upcycle.branches_by", "sft.schedule", "sft.optimizer", "sft.precision", "sft.balance_loss_reduction",
    "merge.precision", "merge.rows"}
NOT_HERE = {("sft.adapter", "qlora"), ("baseline.adapter", "lora"), ("baseline.adapter", "qlora"), ("baseline.adapter", "none")}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_is_of_valid_recipes(grid: str) -> None:
    assert len(expand(load_recipe(RECIPE, list(FEW_ROWS)), [grid])) >= 2


def test_no_choice_of_a_recipe_is_missing() -> None:
    given = {(field, value) for grid in GRIDS for axis in parse_grid([grid]) for step in axis.values
             for field, value in zip(axis.fields, step, strict=True) if isinstance(value, str)}
    for section in ("upcycle", "sft", "merge", "baseline"):
        for name, info in type(getattr(Recipe(), section)).model_fields.items():
            field = f"{section}.{name}"
            if get_origin(info.annotation) is Literal and field not in ELSEWHERE:
                missing = {(field, value) for value in get_args(info.annotation)} - given - NOT_HERE
                assert not missing
