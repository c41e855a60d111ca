"""Choose the recipe's fields that are parameters of a run: those that distinguish runs. recipe.yaml has the entire recipe."""

import json
from collections.abc import Mapping
from typing import Any

from xft_core.recipe.load import flatten
from xft_core.recipe.sections import Recipe

# Fields used to compare runs, even at their defaults: another run may have changed them.
ALWAYS = (
    "seed", "model.path", "data.path", "upcycle.num_experts", "upcycle.num_experts_per_tok", "upcycle.normalization",
    "sft.epochs", "sft.learning_rate", "sft.batch_size", "merge.method", "merge.shared_expert_weight")
# Fields that distinguish the stages of variants in the table of all stages.
OF_STAGES = ("upcycle.num_experts", "upcycle.num_experts_per_tok", "upcycle.normalization", "merge.method")
# Names of runs and of their experiments.
NAMES = ("name", "experiment")
VARIES = "xft.varies"


def run_parameters(
    recipe: Recipe, sections: frozenset[str] | None = None, without: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return the parameters of a run outside a comparison: the fields used to compare runs, and those that differ from the
    defaults. ``sections``: parts of the recipe that apply to it; ``without``: fields without a single value."""
    defaults = flatten(Recipe())
    return {
        field: value for field, value in flatten(recipe).items()
        if (field in ALWAYS or value != defaults[field]) and field not in (*NAMES, *without)
        and (sections is None or field.partition(".")[0] in sections)}


def variant_parameters(recipe: Recipe, parent: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the parameters of a variant: the fields that vary in its comparison, so that every table and chart of variants
    starts with them. The comparison has the others. ``parent``: tags of the comparison's run. None if they do not say."""
    varying = json.loads(parent.get(VARIES, "[]"))
    flat = flatten(recipe)
    return {field: flat[field] for field in varying if field in flat} or None


def stage_parameters(recipe: Recipe) -> dict[str, str]:
    """Return the parameters of a stage's run, in addition to the stage's own settings."""
    flat = flatten(recipe)
    return {field: str(flat[field]) for field in OF_STAGES}
