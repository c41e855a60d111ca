"""The merged model's card: a Hugging Face README.md on how the model was made, how good it is and how to load it."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xft_core.data.templates import magicoder_prompt
from xft_core.files.locate import is_hub_name
from xft_core.recipe.labels import flat_names, path_labels
from xft_core.recipe.load import flatten
from xft_core.recipe.sections import PROCESS_FIELDS, Recipe, SourceConfig
from xft_core.recipe.sections.merge import ON_DELTAS, OPERATORS
from xft_core.recipe.steps import FACTS, MERGED_MODEL
from xft_core.reporting.run.comparison import Comparison, Row
from xft_core.reporting.run.domains import domain_table, source_table
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.run.findings import warnings
from xft_core.reporting.run.markdown import CAPTION, picture, results_table
from xft_core.reporting.tables import table

TEMPLATE = "model_card.md.jinja"  # next to this file
# Sections of the recipe that determine the weights, and those that only measure them.
TRAINING_SECTIONS = ("seed", "model", "data", "upcycle", "sft", "merge")
MEASURING_SECTIONS = ("baseline", "generate", "evaluate")
# Fields that hold paths. The card leaves out their directories.
PATHS = ("model.path", "data.path", "evaluate.lm_eval_directory")

METHOD = {
    "learned": "alpha is learned per layer by gradient descent on the training rows, with everything else fixed",
    "uniform": "alpha is equal for all routed experts",
    "routing": "lambda and the experts' shares are the mean routing weights per layer, no training",
    "ewa": "every expert, including the shared one, has the same share (expert weight averaging)",
    "shared_only": "only the shared expert is kept (lambda = 1)",
    "regmean": "a closed-form least-squares fit to the experts' outputs on training rows (RegMean)",
    "fisher": "the mean of the experts, each element weighted by its Fisher information on training rows",
    "task_arithmetic": "the mean of the experts' differences from the base model, times merge.scale",
    "ties": "the largest elements of the experts' differences from the base model, where they have the elected sign (TIES)",
    "dare": "the experts' differences from the base model, with elements dropped at random and the others rescaled (DARE)",
    "della": "like DARE, but fewer large elements are dropped and only those of the elected sign are kept (DELLA)",
    "model_stock": "the experts' mean, pulled towards the base model by the cosine of their differences (Model Stock)",
}

EXAMPLE = "Write a Python function that returns the n-th Fibonacci number."


def model_card(comparison: Comparison, evidence: Evidence, plots: frozenset[str]) -> str:
    """The text of README.md: YAML front matter and sections. ``plots``: names of the plots that were drawn.
    Needs neither network nor torch."""
    recipe = evidence.recipe
    merged = comparison.row(MERGED_MODEL)
    equation, where = _equation(recipe)
    card = _environment().get_template(TEMPLATE).render(
        recipe=recipe, name=evidence.model_name(MERGED_MODEL), front_matter=_front_matter(evidence, merged).to_yaml(),
        example=EXAMPLE, results=f"{CAPTION}\n\n{results_table(comparison)}",
        pictures={name: list(picture(name, plots)) for name in ("results", "loss")}, has_loss="loss" in plots,
        warnings=warnings(comparison), routing=_routing(recipe), equation=equation, where=where,
        method=METHOD[recipe.merge.method], made=_choices(evidence, TRAINING_SECTIONS),
        measured=_choices(evidence, MEASURING_SECTIONS), lineage=_lineage(evidence), used=_used(evidence),
        decontamination=_decontamination(comparison), sources=source_table(comparison) if comparison.sources else "",
        domains=domain_table(comparison) if comparison.domains else "")
    return str(ModelCard(card))


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True)  # Markdown: nothing is escaped
    found.filters |= {"display_name": display_name, "magicoder_prompt": magicoder_prompt}
    return found


def _decontamination(comparison: Comparison) -> str:
    found = comparison.decontamination
    if found is None or not found.benchmarks:
        return ""
    return (f" The training data was searched for the problems of {', '.join(found.benchmarks)}; of {found.rows_checked:,} "
            f"rows, {len(found.dropped):,} contained one and were dropped.")


def display_name(path: str) -> str:
    """A Hub name unchanged, or the last part of a path: a card must not show a user's directories."""
    return path if is_hub_name(path) or path.startswith("demo:") else path.rstrip("/").rsplit("/", 1)[-1]


def _front_matter(evidence: Evidence, merged: Row | None) -> ModelCardData:
    recipe = evidence.recipe
    fields: dict[str, Any] = {
        "model_name": recipe.name, "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["code", "xft", "mixture-of-experts", "model-merging", "sparse-upcycling"],
    }
    if is_hub_name(recipe.model.path):
        fields |= {"base_model": recipe.model.path.partition("@")[0], "base_model_relation": "finetune"}
    if hub := [path.partition("@")[0] for path in recipe.data.paths if is_hub_name(path)]:
        fields |= {"datasets": hub}
    scores = merged.scores if merged else []
    names = flat_names(score.benchmark for score in scores)
    fields["eval_results"] = [
        EvalResult(
            task_type="text-generation", dataset_type=names[score.benchmark].replace("_", "-"),
            dataset_name=score.benchmark, metric_type="pass@1",
            metric_name=f"pass@1, {name}" if score.extended_tests else "pass@1", metric_value=round(rate.value, 4))
        for score in scores
        for tests, name in (("base", "base tests"), ("plus", "base and extended tests"))
        if (tests == "base" or score.extended_tests) and (rate := score.rate(tests))
    ] or None
    return ModelCardData(**fields)


def _routing(recipe: Recipe) -> str:
    upcycle = recipe.upcycle
    if upcycle.mode == "fusion":
        return f"Every token goes through one FFN, whose weights are a mixture of those of {upcycle.num_experts} experts."
    routing = "One expert is always on; " if upcycle.shared_expert else "No expert is always on; "
    most = "at most " if upcycle.routing == "top_p" else ""
    routing += f"{most}{upcycle.num_experts_per_tok} of {upcycle.num_experts} experts are active per token"
    if upcycle.groups is not None:
        routing += (f" in each of {upcycle.groups_per_tok} of {upcycle.groups} groups (the shared one counts once), which the "
                    "instruction chooses")
    if upcycle.expert_rank is not None:
        routing += f"; experts are low-rank changes (rank {upcycle.expert_rank}) of shared weights"
    routing += f", routing weights normalised as `{upcycle.normalization}`." if upcycle.shared_expert else "."
    if upcycle.router != "learned":
        routing += f" The router is {upcycle.router.replace('_', ' ')}."
    if upcycle.target_active is not None and upcycle.routing == "top_p":
        routing += f" Routing is top-p; {upcycle.target_active:g} experts are active on average."
    if upcycle.shared_gate == "token" and upcycle.shared_expert:
        routing += " A gate sets the shared expert's weight for every token."
    return routing


def _equation(recipe: Recipe) -> tuple[str, str]:
    """The equation of the merge, and the meaning of its symbols."""
    upcycle, merge = recipe.upcycle, recipe.merge
    if merge.method in OPERATORS:
        parts = f"W_i: FFN weights of expert i, i = 0..{upcycle.num_experts - 1}"
        if merge.method not in ON_DELTAS:
            return f"W = {merge.method}(W_0, ..., W_{upcycle.num_experts - 1})", parts
        return f"W = W_base + {merge.scale:g} {merge.method}(W_i - W_base)", f"{parts}, W_base those of the base model"
    share = "learned" if merge.shared_expert_weight is None else f"{merge.shared_expert_weight:g}"
    equation, first = "W = sum_i softmax(alpha)_i W_i", 0
    if upcycle.shared_expert:
        equation, first = "W = lambda W_0 + (1 - lambda) sum_i softmax(alpha)_i W_i", 1
    where = f"W_i: FFN weights of expert i, i = {first}..{upcycle.num_experts - 1}"
    if upcycle.shared_expert:
        where += ", W_0 those of the shared expert"
        where += f", lambda = {share}" if merge.method in ("learned", "uniform") else ""
    return equation, where


def _choices(evidence: Evidence, sections: tuple[str, ...]) -> str:
    recorded = evidence.recipe.recorded()  # without later-added fields at their default
    flat = {name: value for name, value in flatten(evidence.recipe).items() if _is_in(recorded, name)}
    for name in PROCESS_FIELDS:
        del flat[f"sft.{name}"]
    flat["evaluate.benchmarks"] = evidence.benchmarks()
    flat["evaluate.held_out_data"] = path_labels(evidence.recipe.evaluate.held_out_data)
    rows = [
        [f"`{name}`", display_name(str(value)) if name in PATHS and value else _shown(value)]
        for name, value in flat.items() if name.partition(".")[0] in sections]
    return table(["field", "value"], rows)


def _is_in(recorded: Any, name: str) -> bool:
    section, _, rest = name.partition(".")
    return section in recorded and (not rest or _is_in(recorded[section], rest))


def _shown(value: Any) -> str:
    if isinstance(value, SourceConfig):
        said = value.recorded() | {"path": display_name(value.path)}
        return "; ".join(f"{name} {_shown(item)}" for name, item in said.items() if item not in (None, [], {}, False))
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "-"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _by_number(role: str) -> tuple[str, int]:
    """``evaluate_merged_10`` comes after ``evaluate_merged_9``."""
    name, _, number = role.rpartition("_")
    return (name, int(number)) if number.isdecimal() else (role, 0)


def _lineage(evidence: Evidence) -> str:
    stage_order = list(FACTS)
    in_order = sorted(
        evidence.manifests.items(), key=lambda item: (stage_order.index(item[1].stage), *_by_number(item[0])))
    rows = [
        [role, f"{manifest.stage} v{manifest.stage_version}", f"`{manifest.key[:16]}`", f"`{manifest.digest[:16]}`"]
        for role, manifest in in_order]
    return table(["artifact", "stage", "key", "digest"], rows)


def _used(evidence: Evidence) -> str:
    versions: dict[str, str] = {}
    for manifest in evidence.manifests.values():
        versions |= manifest.versions
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
