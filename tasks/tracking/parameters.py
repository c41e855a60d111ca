"""Which of a recipe's fields a run has as parameters: those that tell runs apart. The whole recipe is its file recipe.yaml."""

import json
from collections.abc import Mapping
from typing import Any

from xft_core.recipe.load import flatten
from xft_core.recipe.sections import Recipe

# What runs are compared by, also at their defaults: another run may have changed them.
ALWAYS = (
    "seed", "model.path", "data.path", "upcycle.num_experts", "upcycle.num_experts_per_tok", "upcycle.normalization",
    "sft.epochs", "sft.learning_rate", "sft.batch_size", "merge.method", "merge.shared_expert_weight")
# What tells a variant's stages apart in the table of all stages.
OF_STAGES = ("upcycle.num_experts", "upcycle.num_experts_per_tok", "upcycle.normalization", "merge.method")
# Names of runs and of where they are.
NAMES = ("name", "experiment")
VARIES = "xft.varies"


def run_parameters(
    recipe: Recipe, sections: frozenset[str] | None = None, without: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Of a run of its own: what runs are compared by, and what differs from the defaults. ``sections``: parts of the recipe
    that play a role in it; ``without``: fields that have no one value."""
    defaults = flatten(Recipe())
    return {
        field: value for field, value in flatten(recipe).items()
        if (field in ALWAYS or value != defaults[field]) and field not in (*NAMES, *without)
        and (sections is None or field.partition(".")[0] in sections)}


def variant_parameters(recipe: Recipe, parent: Mapping[str, str]) -> dict[str, Any] | None:
    """Of a variant: what varies in its comparison, so that every table and chart of variants begins with that; the rest is the
    comparison's. ``parent``: tags of the comparison's run. None when it does not say."""
    varying = json.loads(parent.get(VARIES, "[]"))
    flat = flatten(recipe)
    return {field: flat[field] for field in varying if field in flat} or None


def stage_parameters(recipe: Recipe) -> dict[str, str]:
    """Of the run of a stage of a pipeline, beside the stage's own settings."""
    flat = flatten(recipe)
    return {field: str(flat[field]) for field in OF_STAGES}
