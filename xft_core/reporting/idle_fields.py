"""What the equations say of a recipe before anything is measured: fields that change nothing, an expert that is not tuned."""

from xft_core.config import PROCESS_FIELDS, Recipe

_LEARNED_ONLY = frozenset(f"merge.{name}" for name in ("learning_rate", "epochs", "max_steps", "batch_size", "warmup_steps"))


def plays_no_part(recipe: Recipe, field: str) -> str | None:
    """Why ``field`` changes nothing in this recipe, as the end of a sentence; None when it does, or may."""
    upcycle, merge = recipe.upcycle, recipe.merge
    if field == "upcycle.normalization":
        if not upcycle.shared_expert:
            return "without a shared expert the weights are a softmax, whatever it says"
        if upcycle.num_experts == 2:
            return ("with two experts the only routed one has s = 1, so its weight is 1 and the shared expert's 0 for "
                    "every token, whatever it says")
        if upcycle.num_experts_per_tok == 2:
            return "with one routed expert per token its weight is max(s), whatever it says"
    if field == "merge.shared_expert_weight" and (
            merge.method in ("routing", "ewa", "shared_only") or not upcycle.shared_expert):
        return (f"method {merge.method} does not use it" if upcycle.shared_expert else "there is no shared expert")
    if field in _LEARNED_ONLY and merge.method != "learned":
        return f"method {merge.method} learns nothing"
    if field == "merge.calibration_rows" and merge.method != "routing":
        return f"method {merge.method} averages over no rows"
    if field == "generate.top_p" and recipe.generate.temperature == 0:
        return "greedy decoding draws no samples"
    if field in [f"sft.{name}" for name in PROCESS_FIELDS]:
        return "the result is that of one process but for rounding"
    return None


def merges_an_untuned_expert(recipe: Recipe) -> bool:
    """Whether the shared expert's weight is 0 for every token, so that it is not tuned, and merging uses it all the same."""
    return recipe.upcycle.shared_expert and recipe.upcycle.num_experts == 2 and recipe.merge.method != "routing"
