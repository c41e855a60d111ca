"""Fields that change nothing, and why: what the code does not look at (which stage keys leave out), and what the equations
say besides. Other modules ask here."""

from xft_core.recipe.sections import PROCESS_FIELDS, GenerateConfig, MergeConfig, Precision, Recipe, UpcycleConfig

_LEARNED_ONLY = ("learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size", "warmup_steps")


def unused_in_upcycle(upcycle: UpcycleConfig) -> dict[str, str]:
    """Fields of the section that no code looks at, each with the reason as the end of a sentence."""
    found = {} if upcycle.shared_expert else {
        "normalization": "without a shared expert the weights are a softmax, whatever it says"}
    if upcycle.expert_rank is None:
        found |= {"expert_alpha": "without upcycle.expert_rank experts have weights of their own"}
    else:
        found |= {"store_experts": "low-rank experts are stored as what each adds to the weights that they share"}
    if upcycle.groups is None:
        found |= dict.fromkeys(("group_rank", "groups_per_tok"), "there are no groups")
    return found


def unused_in_merge(merge: MergeConfig) -> dict[str, str]:
    """The same of this section. lambda counts in every method: uniform mixing is what each is compared with."""
    found = {} if merge.method == "routing" else {"calibration_rows": f"method {merge.method} averages over no rows"}
    if not learns(merge):
        found |= dict.fromkeys(_LEARNED_ONLY, f"method {merge.method} learns nothing")
    return found | {"export_adapter": "it says what merge writes, not what the coefficients are"}


def unused_in_generate(generate: GenerateConfig) -> dict[str, str]:
    """The same of this section."""
    return {} if draws_samples(generate) else {"top_p": "greedy decoding draws no samples"}


def learns(merge: MergeConfig) -> bool:
    """Whether coefficients are learned: else neither a seed nor batches play a part."""
    return merge.method == "learned"


def draws_samples(generate: GenerateConfig) -> bool:
    """Whether answers are drawn: greedy ones are the same for every seed."""
    return generate.temperature > 0


def measuring_precision(precision: Precision) -> Precision:
    """What a precision means where nothing is trained: mixed precision then has the weights and arithmetic of fp32."""
    return "fp32" if precision == "bf16_mixed" else precision


def plays_no_part(recipe: Recipe, field: str) -> str | None:
    """Why ``field`` changes nothing of the merged model or its answers, as the end of a sentence; None when it does, or may.

    More than what no code looks at: where the equations cancel a field, results may differ by rounding.
    """
    upcycle, merge = recipe.upcycle, recipe.merge
    section, _, name = field.partition(".")
    unused = {"upcycle": unused_in_upcycle(upcycle), "merge": unused_in_merge(merge),
              "generate": unused_in_generate(recipe.generate)}.get(section, {})
    if name in unused:
        return unused[name]
    if field == "upcycle.normalization":
        if upcycle.num_experts == 2:
            return ("with two experts the only routed one has s = 1, so its weight is 1 and the shared expert's 0 for "
                    "every token, whatever it says")
        if upcycle.num_experts_per_tok == 2:
            return "with one routed expert per token its weight is max(s), whatever it says"
    if field == "merge.shared_expert_weight" and (
            merge.method in ("routing", "ewa", "shared_only") or not upcycle.shared_expert):
        return (f"method {merge.method} does not use it" if upcycle.shared_expert else "there is no shared expert")
    if field == "sft.expert_learning_rate_factor" and upcycle.expert_rank is None:
        return "only low-rank experts have a learning rate of their own"
    if field == "merge.export_adapter":
        return "it is one more file beside the merged model"
    if field in [f"sft.{name}" for name in PROCESS_FIELDS]:
        return "the result is that of one process but for rounding"
    return None


def merges_an_untuned_expert(recipe: Recipe) -> bool:
    """Whether the shared expert's weight is 0 for every token, so that it is not tuned, and merging uses it all the same."""
    return recipe.upcycle.shared_expert and recipe.upcycle.num_experts == 2 and recipe.merge.method != "routing"
