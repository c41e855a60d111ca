"""Fields that change nothing, and why: fields that the code does not read (stage keys leave them out), and fields that cancel
in the equations. This module is the single source for this information."""

from xft_core.recipe.sections import (
    PROCESS_FIELDS,
    BaselineConfig,
    GenerateConfig,
    MergeConfig,
    Precision,
    Recipe,
    SftConfig,
    UpcycleConfig,
)
from xft_core.recipe.sections.merge import CLOSED_FORMS, ON_DELTAS
from xft_core.recipe.sections.upcycle import ASSIGNED

_SEARCH_ONLY = ("search_over", "search_trials", "search_rows", "search_layers_per_group")
_STEPS = (
    "learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size", "warmup_steps", "objective", "uniform_penalty",
    "smoothness", "expert_dropout", "cross_validation")
_LEARNED_ONLY = (*_STEPS, "granularity", "generator", "generator_from", "keep_features", "headroom")


def unused_in_upcycle(upcycle: UpcycleConfig) -> dict[str, str]:
    """Fields of the section that no code reads, each with the reason as the end of a sentence."""
    found: dict[str, str] = {}
    if not upcycle.shared_expert:
        found |= {"normalization": "without a shared expert, the weights are always a softmax"}
        found |= dict.fromkeys(("shared_gate", "shared_gate_start", "routing_temperature"), "there is no shared expert")
    if upcycle.is_stock:
        found["store_experts"] = "an architecture that other programs support stores every expert"
    if upcycle.shared_gate == "probability" and upcycle.normalization != "granite":
        found["shared_gate_start"] = "shared_gate probability has no start value"
    if upcycle.routing == "top_k":
        found["target_active"] = "routing top_k uses the same number of experts for every token"
    if upcycle.router in ASSIGNED:
        found["router_noise"] = f"the router {upcycle.router} has no logits"
    if upcycle.mode == "routed":
        found["fusion_concentration"] = "mode routed draws no shares"
    else:
        found["router_noise"] = "mode fusion has no router"
    if upcycle.experts_from == "base":
        found["dense_share"] = "no dense model is tuned before upcycling"
    if upcycle.experts_from != "branches":
        found["branches_by"] = "there are no branches"
    if upcycle.expert_rank is None:
        found["expert_alpha"] = "without upcycle.expert_rank, experts have their own weights"
    else:
        found["store_experts"] = "low-rank experts are stored as shared weights and a change per expert"
    if upcycle.groups is None:
        found |= dict.fromkeys(("group_rank", "groups_per_tok"), "there are no groups")
    return found


def as_computed(recipe: Recipe) -> UpcycleConfig:
    """The section upcycle as the stage gets it, so that variants that compute the same share their training.

    With one routed expert per token, normalization none gives max(s), and xft gives max(s) times a softmax over one number,
    which is 1: the same bits, forward and backward. (renormalize divides, which rounds; the router's gradient through all
    experts depends on the weights that the others would have.)
    """
    upcycle = recipe.upcycle
    one_routed = upcycle.num_experts_per_tok == 2 and upcycle.shared_expert
    if one_routed and upcycle.normalization == "none" and recipe.sft.router_gradient == "chosen":
        return upcycle.model_copy(update={"normalization": "xft"})
    return upcycle


def unused_in_average(section: SftConfig | BaselineConfig) -> dict[str, str]:
    """As ``unused_in_upcycle``, for the fields of a section that average weights over a training."""
    return {} if section.average == "last_k" else {"average_count": "only the average last_k uses a number of checkpoints"}


def unused_in_sft(sft: SftConfig) -> dict[str, str]:
    """As ``unused_in_upcycle``, for the section sft, whatever the model."""
    found = unused_in_average(sft)
    if sft.adapter == "none":
        found |= dict.fromkeys(("adapter_rank", "adapter_alpha", "adapter_export"), "sft.adapter is none")
    if sft.balance == "bias":
        of_loss = ("balance_loss_weight", "balance_loss_reduction", "balance_scope")
        found |= dict.fromkeys(of_loss, "with sft.balance bias there is no balance loss")
    return found


def _unused_in_choice(sft: SftConfig) -> dict[str, str]:
    """As ``unused_in_upcycle``, for the fields that choose a step to merge. The sft stage does not read them."""
    return {"merge_checkpoints": "the last step is merged"} if sft.merge_at == "last" else {}


def unused_in_merge(merge: MergeConfig) -> dict[str, str]:
    """As ``unused_in_upcycle``, for the section merge. lambda counts in every method, because each is compared with uniform
    mixing."""
    found = {}
    if not (merge.method in ("routing", *CLOSED_FORMS) or tests_headroom(merge) or needs_features(merge)):
        found["calibration_rows"] = f"method {merge.method} averages over no rows"
    if not learns(merge):
        found |= dict.fromkeys(_LEARNED_ONLY, f"method {merge.method} learns nothing")
        if merge.method not in ("routing", *CLOSED_FORMS) and (merge.search, merge.ensemble) == ("none", "none"):
            found["rows"] = f"method {merge.method} uses no rows"
    elif merge.generator_from is not None:
        found |= dict.fromkeys((*_STEPS, "headroom"), "the coefficients are predicted")
    elif merge.cross_validation:
        found["uniform_penalty"] = "cross-validation chooses it"
    if not learns(merge) or merge.granularity != "block":
        found["block_count"] = "nothing is cut into blocks"
    if not tests_headroom(merge):
        found["headroom_threshold"] = "headroom is not tested"
    if not scales_delta(merge):
        found["delta_scale_scope"] = "merge.delta_scale is 1"
    if merge.method not in ON_DELTAS:
        found["scale"] = f"method {merge.method} uses no base model"
    if merge.method not in ("ties", "dare", "della"):
        found["density"] = f"method {merge.method} keeps all elements"
    if merge.method != "della":
        found["density_spread"] = f"method {merge.method} does not draw which elements to keep by size"
    if merge.search == "none":
        found |= dict.fromkeys(_SEARCH_ONLY, "nothing is searched")
    if merge.search == "golden":
        found["search_layers_per_group"] = "golden-section search uses one number for all layers"
    if merge.ensemble == "none":
        found["ensemble_rows"] = "there is no ensemble"
    if merge.ensemble != "learned":
        found["ensemble_steps"] = "no shares of an ensemble are learned"
    return found | {"export_adapter": "it affects what merge writes, not the coefficients"}


def unused_in_generate(generate: GenerateConfig) -> dict[str, str]:
    """As ``unused_in_upcycle``, for the section generate."""
    return {} if draws_samples(generate) else {"top_p": "greedy decoding draws no samples"}


def learns(merge: MergeConfig) -> bool:
    """Whether coefficients are learned. If not, neither the seed nor batches have an effect."""
    return merge.method == "learned"


def tests_headroom(merge: MergeConfig) -> bool:
    """Whether the stage first tests if there is anything to learn."""
    return learns(merge) and merge.headroom and merge.generator_from is None


def needs_features(merge: MergeConfig) -> bool:
    """Whether features of the experts are computed."""
    return learns(merge) and (merge.generator != "free" or merge.keep_features)


def searches_delta_scale(merge: MergeConfig) -> bool:
    """Whether gamma is searched."""
    return merge.search != "none" and "delta_scale" in merge.search_over


def scales_delta(merge: MergeConfig) -> bool:
    """Whether W_base has, or may get, a share in the merged model."""
    return merge.delta_scale != 1 or searches_delta_scale(merge)


def needs_base(merge: MergeConfig) -> bool:
    """Whether mixing needs the base model: if W_base has a share, or for operators on differences from it. (If it is given a
    base model, the headroom test also looks along gamma.)"""
    return scales_delta(merge) or merge.method in ON_DELTAS


def uses_seed(merge: MergeConfig) -> bool:
    """Whether mixing draws anything at random: batches, dropped elements or trials."""
    return learns(merge) or merge.method in ("dare", "della") or merge.search in ("tpe", "cmaes")


def draws_samples(generate: GenerateConfig) -> bool:
    """Whether answers are sampled; greedy ones are the same for every seed."""
    return generate.temperature > 0


def measuring_precision(precision: Precision) -> Precision:
    """The equivalent precision where nothing is trained: mixed precision then means fp32 weights and arithmetic."""
    return "fp32" if precision == "bf16_mixed" else precision


def plays_no_part(recipe: Recipe, field: str) -> str | None:
    """Why ``field`` does not affect the merged model or its answers, as the end of a sentence; None if it does, or may.

    Covers more than the fields that no code reads: where the equations cancel a field, results may differ by rounding.
    """
    upcycle, merge = recipe.upcycle, recipe.merge
    section, _, name = field.partition(".")
    unused = {"upcycle": unused_in_upcycle(upcycle),
              "sft": unused_in_sft(recipe.sft) | _unused_with(upcycle) | _unused_in_choice(recipe.sft),
              "merge": unused_in_merge(merge),
              "generate": unused_in_generate(recipe.generate),
              "baseline": unused_in_average(recipe.baseline)}.get(section, {})
    if name in unused:
        return unused[name]
    if field == "upcycle.normalization" and not upcycle.is_stock:
        if upcycle.num_experts == 2:
            return ("with two experts, the only routed one always has s = 1, so its weight is 1 and the shared expert's is 0 "
                    "for every token")
        if upcycle.num_experts_per_tok == 2:
            return "with one routed expert per token, its weight is always max(s)"
    if field == "upcycle.routing_temperature":
        if upcycle.num_experts_per_tok == 2:
            return "with one routed expert per token, its weight is always m"
        if upcycle.router in ASSIGNED:
            return f"all s are equal with the router {upcycle.router}"
    if field == "merge.shared_expert_weight" and (
            merge.method in ("routing", "ewa", "shared_only", "regmean", "model_stock") or not upcycle.shared_expert):
        return (f"method {merge.method} does not use it" if upcycle.shared_expert else "there is no shared expert")
    if field == "sft.expert_learning_rate_factor" and upcycle.expert_rank is None:
        return "only low-rank experts have their own learning rate"
    if field == "merge.export_adapter":
        return "it only adds files to the merged model"
    if field == "data.reserved_rows" and recipe.data.reserved_path is not None:
        return "the rows of data.reserved_path are reserved"
    if section == "dpo" and name != "benchmark" and recipe.dpo.benchmark is None:
        return "dpo.benchmark is empty: there is no DPO"
    if field in [f"sft.{name}" for name in PROCESS_FIELDS]:
        return "the result is that of one process, apart from rounding"
    return None


def _unused_with(upcycle: UpcycleConfig) -> dict[str, str]:
    """Fields of the section sft that change nothing with this Mixture-of-Experts."""
    found: dict[str, str] = {}
    if upcycle.router != "learned":
        found |= dict.fromkeys(("balance_loss_weight", "balance_loss_reduction", "balance_scope"),
                               f"the router {upcycle.router} learns nothing")
    if upcycle.shared_gate != "token" or not upcycle.shared_expert:
        found["gate_budget_weight"] = "upcycle.shared_gate is not token"
    if upcycle.routing != "top_p" or upcycle.router != "learned":
        found["router_entropy_weight"] = "upcycle.routing is not top_p with a learned router"
    return found


def merges_an_untuned_expert(recipe: Recipe) -> bool:
    """Whether merging uses a shared expert that is not tuned, because its weight is 0 for every token."""
    upcycle = recipe.upcycle
    never_used = upcycle.shared_expert and upcycle.num_experts == 2 and not upcycle.is_stock
    return never_used and recipe.merge.method != "routing"
