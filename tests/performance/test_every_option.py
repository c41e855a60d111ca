"""The script that runs every option past the paper has them all, and each is a valid recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from performance.every_option import FEW_ROWS, GRIDS
from xft_core.recipe.checks import stage_findings
from xft_core.recipe.grid import expand, parse_grid
from xft_core.recipe.load import load_recipe
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import pipeline_steps

RECIPE = Path("deployments/recipes/smollm2_cpu.yaml")
# How a run computes and what it writes, not what it computes; clusters and domains need more or other rows; qlora needs a GPU;
# qwen2_moe needs a model of type qwen2.
ELSEWHERE = {
    "upcycle.store_experts", "upcycle.branches_by", "sft.schedule", "sft.optimizer", "sft.precision",
    "sft.balance_loss_reduction", "merge.precision", "merge.rows"}
NOT_HERE = {
    ("upcycle.normalization", "qwen2_moe"), ("sft.adapter", "qlora"), ("baseline.adapter", "none"),
    ("baseline.adapter", "lora"), ("baseline.adapter", "qlora")}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_is_of_valid_recipes(grid: str) -> None:
    assert len(expand(load_recipe(RECIPE, list(FEW_ROWS)), [grid])) >= 2


def test_no_choice_of_a_recipe_is_missing() -> None:
    given = {(name, value) for grid in GRIDS for axis in parse_grid([grid]) for step in axis.values
             for name, value in zip(axis.fields, step, strict=True) if isinstance(value, str)}
    for section in ("upcycle", "sft", "merge", "baseline"):
        for name, info in type(getattr(Recipe(), section)).model_fields.items():
            full = f"{section}.{name}"
            if get_origin(info.annotation) is Literal and full not in ELSEWHERE:
                missing = {(full, value) for value in get_args(info.annotation)} - given - NOT_HERE
                assert not missing


@dataclass(frozen=True)
class Numbers:
    """An artifact with no numbers but those that every one has."""

    stage: str
    metrics: Mapping[str, object] = field(default_factory=lambda: {"steps": 1, "parameters": 1})


@pytest.mark.parametrize("grid", GRIDS)
def test_the_checks_of_a_step_read_only_what_the_step_has(grid: str) -> None:
    """sft.merge_at best failed in every run: its merge was compared with a training that the step did not have."""
    for variant in expand(load_recipe(RECIPE, list(FEW_ROWS)), [grid]):
        for step in pipeline_steps(variant.recipe):
            made: Any = {role: Numbers(step.stage) for role in (*step.needs, step.role)}
            assert isinstance(stage_findings(step, variant.recipe, made), list)
