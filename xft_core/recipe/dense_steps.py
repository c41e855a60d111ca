"""Steps that tune dense models: the baseline with its rivals, and the models that experts can start from."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xft_core.recipe.sections import BaselineConfig, Match, Recipe, SftConfig, WorkToMatch
from xft_core.recipe.step import BASE, CLUSTERED, PREPARED, SFT_MODEL, SNAPSHOTS, TUNED, Made, Step


def baseline_steps(recipe: Recipe) -> Iterator[Step]:
    """The dense baseline (``sft``) and its rivals. For each budget in ``baseline.match``: a training, its average, a soup of
    several trainings, and versions of each of these part of the way back to the base model. No steps if there is no
    baseline."""
    baseline = recipe.baseline
    for match in baseline.match if baseline.enabled else []:
        name, role = (SFT_MODEL, TUNED[SFT_MODEL]) if match == baseline.match[0] else (f"sft_{match}", f"sft_{match}")
        dense = baseline.applied_to(recipe.sft)
        tuned = _training(recipe, role, dense, recipe.seed, model=name, match=work_to_match(recipe, match))
        yield tuned
        models = tuned.makes
        if baseline.runs > 1:
            once = dense.model_copy(update={"average": "none", "average_count": SftConfig().average_count})
            runs = [_training(recipe, f"{name}_run_{number}", once, recipe.seed + number,
                              match=work_to_match(recipe, match, baseline.runs))
                    for number in range(baseline.runs)]
            if match == "epochs":
                runs[0] = tuned  # the same training
            yield from (run for run in runs if run is not tuned)
            soup = weighted(recipe, f"{name}_soup", {run.role: 1 / len(runs) for run in runs})
            yield soup
            models = models | soup.makes
        for model, place in models.items():
            for share in baseline.wise:
                yield weighted(recipe, f"{model}_wise_{share:g}".replace(".", "_"), {"base": 1 - share, model: share}, {
                    "base": BASE, model: place})


def work_to_match(recipe: Recipe, match: Match, runs: int = 1) -> WorkToMatch | None:
    """The work that ``runs`` dense trainings share; None if epochs determine it."""
    if match == "epochs":
        return None
    upcycle, merge, sft = recipe.upcycle, recipe.merge, recipe.moe_sft
    mixing = {} if merge.method != "learned" or merge.generator_from is not None else {
        "mixing_epochs": merge.epochs, "mixing_max_steps": _most_steps_of_mixing(recipe), "mixing_batch_size": merge.batch_size,
        "cross_validation": merge.cross_validation, "distills": merge.objective == "distill" and match == "flops"}
    return WorkToMatch(
        kind=match, runs=runs, upcycle=upcycle if match == "flops" else None, epochs=sft.epochs if sft else 0.0,
        router_start=upcycle.router_start,
        max_steps=recipe.sft.max_steps, dense_epochs=recipe.sft.epochs - (sft.epochs if sft else 0.0), **mixing)


def _most_steps_of_mixing(recipe: Recipe) -> int | None:
    """Maximum optimizer steps of learning coefficients; on reserved rows, at most as many as with one sequence per row."""
    merge = recipe.merge
    if merge.rows == "held_in" or recipe.data.reserved_path is not None:  # a file's number of rows is not known here
        return merge.max_steps
    on_reserved = math.ceil(recipe.data.reserved_rows * max(1, len(recipe.data.sources)) * merge.epochs / merge.batch_size)
    return min(on_reserved, merge.max_steps or on_reserved)


@dataclass(frozen=True)
class Start:
    """The start of upcycling: the steps that make its models, and the fields of the upcycle stage that refer to them."""

    steps: list[Step] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=lambda: {"model": BASE})


def start_steps(recipe: Recipe) -> Start:
    """The base model as start, or dense models tuned for a share of the epochs, whose FFNs become the experts."""
    upcycle = recipe.upcycle
    number = upcycle.num_routed
    dense = BaselineConfig().applied_to(recipe.sft)
    dense = dense.model_copy(update={"epochs": recipe.sft.epochs * upcycle.dense_share})
    if upcycle.experts_from == "checkpoints":
        tuned = _training(recipe, "sft_start", dense, recipe.seed, snapshots=number)
        experts = {str(expert): Made("sft_start", f"{SNAPSHOTS}/{expert}") for expert in range(1, number + 1)}
        return Start([tuned], {"model": Made("sft_start"), "experts": experts, **_router_start(recipe)})
    if upcycle.experts_from == "branches":
        rows = {expert: _rows_of_branch(recipe, expert, number) for expert in range(1, number + 1)}
        clusters: dict[str, Any] = {"clusters": Made(CLUSTERED)} if upcycle.branches_by == "clusters" else {}
        branches = [_training(recipe, f"sft_branch_{expert}", dense, recipe.seed, **own, **clusters)
                    for expert, own in rows.items()]
        clustering = Step(CLUSTERED, "cluster_rows", {
            "model": BASE, "data": Made(PREPARED), "clusters": number, "seed": recipe.seed, "precision": recipe.sft.precision})
        mean = weighted(recipe, "branches_mean", {branch.role: 1 / number for branch in branches})
        experts = {str(expert): Made(branch.role) for expert, branch in enumerate(branches, start=1)}
        started = _router_start(recipe, rows_of_experts={str(expert): own for expert, own in rows.items()}, **clusters)
        steps = [clustering, *branches, mean] if clusters else [*branches, mean]
        return Start(steps, {"model": Made("branches_mean"), "experts": experts, **started})
    return Start()


def _router_start(recipe: Recipe, **rows: Any) -> dict[str, Any]:
    """The fields of the upcycle stage that set the router's initial weights."""
    if recipe.upcycle.router_start == "random":
        return {}
    return {"data": Made(PREPARED), "precision": recipe.sft.precision, **rows}


def _rows_of_branch(recipe: Recipe, branch: int, branches: int) -> dict[str, Any]:
    """The fields of the sft stage that choose the rows of a branch (numbered from 1)."""
    if recipe.upcycle.branches_by == "random":
        return {"part": [branch, branches]}
    if recipe.upcycle.branches_by == "clusters":
        return {"cluster": branch - 1}
    own = set(recipe.trained_domains[branch - 1::branches])
    return {"sources": [place for place, domain in enumerate(recipe.data.source_domains)
                        if domain in own and recipe.data.is_trained_on(place)]}


def _training(recipe: Recipe, role: str, sft: SftConfig, seed: int, model: str | None = None, **more: Any) -> Step:
    given = {"data": Made(PREPARED), "seed": seed, "model": BASE, "sft": sft, "checks": recipe.checks}
    return Step(role, "sft", given | {name: value for name, value in more.items() if value is not None}, model)


def weighted(recipe: Recipe, name: str, weights: Mapping[str, float], places: Mapping[str, Made] | None = None) -> Step:
    """The step that averages complete models. ``places``: where they are; by default, the outputs of the steps with these
    roles."""
    return Step(name, "average_models", {
        "models": dict(places or {role: Made(role) for role in weights}), "weights": dict(weights),
        "data": Made(PREPARED), "precision": recipe.sft.precision}, name)
