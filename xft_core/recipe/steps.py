"""The pipeline as data: facts about each stage, and the steps that a recipe builds from the stages, in execution order.

    prepare ─┬─ sft (dense baseline) ─ its rivals ──┐
    upcycle ─┴─ sft (MoE) ─ mix ─ merge ────────────┴─ generate ─ evaluate, nll, lm_eval: base, sft, moe, merged ─ report

Rivals are other uses of the baseline's work: averages of its weights, soups of several trainings, steps back towards the base
model, and trainings of equal work. With rivals, or with ``evaluate.compare_rows``, the losses of all rows are measured for
every model (row_losses). Each source of a mixture is prepared separately, and mix_data combines the prepared rows. With
``upcycle.experts_from``, dense trainings come before upcycling.

A stage is a kind of work (``sft``); a step is one instance of it in a run (``sft_moe``, ``sft_baseline``). Submission,
planning, preflight, the report and the files shown in MLflow all use these steps. To add a stage, write
``xft_core/stages/NAME.py`` with its StageConfig and its ``run``, then add its facts and its step here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xft_core.recipe.dense_steps import baseline_steps, start_steps, weighted
from xft_core.recipe.inactive_fields import as_computed, needs_base, scales_delta, tests_headroom
from xft_core.recipe.sections import Recipe
from xft_core.recipe.step import (
    AVERAGE,
    BASE,
    BASE_MODEL,
    CHOSEN,
    CLUSTERED,
    DPO,
    ENSEMBLE,
    EXPORTED,
    MERGED,
    MERGED_MODEL,
    MIXED,
    MODELS,
    MOE_MODEL,
    PAIRS,
    PREPARED,
    SFT_MODEL,
    SNAPSHOTS,
    TUNED,
    UPCYCLED,
    Made,
    Step,
    measuring_role,
)
from xft_core.recipe.study import StudyConfig

__all__ = [
    "AVERAGE",
    "BASE",
    "BASE_MODEL",
    "CHOSEN",
    "DPO",
    "ENSEMBLE",
    "FACTS",
    "MERGED",
    "MERGED_MODEL",
    "MIXED",
    "MODELS",
    "MOE_MODEL",
    "PAIRS",
    "PREPARED",
    "SFT_MODEL",
    "SNAPSHOTS",
    "TUNED",
    "UPCYCLED",
    "Made",
    "StageFacts",
    "Step",
    "compare_step",
    "evaluation_steps",
    "exports",
    "is_measured",
    "measuring_role",
    "model_places",
    "pipeline_steps",
    "planned_role",
    "planned_roles",
    "rivals",
    "rows_are_compared",
    "steps_behind",
    "study_step",
    "what_to_change",
    "without_number",
]

LARGER_MACHINE = "use a larger machine or a smaller model"


@dataclass(frozen=True)
class StageFacts:
    """Facts about a stage besides its configuration.

    ``heavy``: the stage takes one of the machine's compute slots. ``needs_less``: what to change when memory is short.
    ``planned``: how ``xft plan`` estimates the stage (a name in planning/plan.py), None to leave it out. ``shown``: directory
    of its artifact in the run's MLflow files, built from ``{role}`` and ``{of}`` (the role without its first word); None to
    show nothing. ``suffixes``: suffixes of the files shown, None for all. ``own_section``: the report has separate sections
    for the stage; other stages have their numbers in a table."""

    heavy: bool = True
    needs_less: str = LARGER_MACHINE
    planned: str | None = None
    shown: str | None = None
    suffixes: tuple[str, ...] | None = None
    own_section: bool = True


# In execution order. Grading is heavy, because its time limits are meaningless on cores that also train a model.
FACTS: dict[str, StageFacts] = {
    "prepare": StageFacts(heavy=False, shown="data", suffixes=("decontamination.json", "refused.json")),
    "mix_data": StageFacts(heavy=False, shown="data", suffixes=("decontamination.json", "mixture.json", "refused.json")),
    "cluster_rows": StageFacts(planned="clustering", shown="data", suffixes=("clusters.json",), own_section=False,
                               needs_less="use sft.precision: bf16, or set upcycle.branches_by to random"),
    "upcycle": StageFacts(planned="upcycling", needs_less="lower upcycle.num_experts"),
    "sft": StageFacts(planned="training", needs_less=(
        "lower sft.micro_batch_size, turn on sft.gradient_checkpointing, use sft.optimizer: adafactor or sft.precision: bf16, "
        "or lower data.max_length")),
    "average_models": StageFacts(planned="averaging"),
    "choose_checkpoint": StageFacts(planned="choosing", shown="mixing", suffixes=("choice.json",)),
    "mix": StageFacts(planned="mixing", needs_less="lower merge.micro_batch_size, or use merge.precision: bf16",
                      shown="mixing", suffixes=(".json",)),
    "merge": StageFacts(planned="merging"),
    "dpo": StageFacts(planned="preferring", own_section=False, needs_less=(
        "lower dpo.micro_batch_size, or use dpo.precision: bf16")),
    "ensemble": StageFacts(planned="ensemble", shown="ensemble", suffixes=(".json",), needs_less="use sft.precision: bf16",
                           own_section=False),
    "export": StageFacts(needs_less="use sft.precision: bf16", own_section=False, shown="export/{of}", suffixes=("Modelfile",)),
    "generate": StageFacts(planned="generation", shown="samples/{of}", needs_less=(
        "lower generate.batch_size, use generate.precision: bf16, or lower generate.max_new_tokens")),
    "evaluate": StageFacts(shown="verdicts/{of}", needs_less="lower evaluate.workers or evaluate.memory_limit_mb"),
    "nll": StageFacts(shown="measures/{role}", needs_less="use generate.precision: bf16"),
    "lm_eval": StageFacts(shown="measures/{role}",
                          needs_less="lower generate.batch_size, or use generate.precision: bf16"),
    "row_losses": StageFacts(planned="row losses", shown="measures/{role}", needs_less="use sft.precision: bf16"),
    "report": StageFacts(heavy=False, shown="report"),
    "compare": StageFacts(heavy=False),
    "study": StageFacts(heavy=False),
}


def pipeline_steps(recipe: Recipe) -> list[Step]:
    """The steps of a pipeline run, each after the steps that it needs."""
    making = _all_making(recipe)
    steps = [*making]
    for model, place in _places(making).items():
        if is_measured(recipe, model):
            steps += _measuring(recipe, place, model, model)
    steps += _comparing_rows(recipe, making)
    everything = {step.role: Made(step.role) for step in steps}
    return [*steps, Step("report", "report", {"recipe": recipe, "artifacts": everything})]


def evaluation_steps(recipe: Recipe) -> list[Step]:
    """The steps of an evaluation of one model."""
    return [*_measuring(recipe, BASE, BASE_MODEL, None)]


def compare_step(recipe: Recipe, grid: list[str], reports: Mapping[str, Any]) -> Step:
    """The single step of a comparison besides those of its variants. ``reports``: report directories by variant name."""
    return Step("compare", "compare", {"recipe": recipe, "grid": grid, "reports": reports})


def study_step(study: StudyConfig, recipe: Recipe, reports: Mapping[str, Any], failures: Mapping[str, str]) -> Step:
    """The single step of a study besides those of its runs. ``reports``: report directories by run name."""
    return Step("study", "study", {"study": study, "recipe": recipe, "reports": reports, "failures": failures})


def model_places(recipe: Recipe) -> dict[str, Made]:
    """The models of a run in report order (base, sft, its rivals, moe, merged), each with the place where it is made."""
    return _places(_all_making(recipe))


def is_measured(recipe: Recipe, model: str) -> bool:
    """Whether a model is measured on everything the recipe lists; for other models, only the held-out loss is measured."""
    return model in (*MODELS, ENSEMBLE, DPO, *exports(recipe)) or recipe.baseline.evaluate_rivals


def rivals(recipe: Recipe) -> list[str]:
    """Names of the models other than the base, SFT, MoE and merged models."""
    return [model for model in model_places(recipe) if model not in MODELS]


def exports(recipe: Recipe) -> dict[str, str]:
    """Names of the models that are exports of the merged model, each with its quantization."""
    return {f"{EXPORTED}{quantization}": quantization for quantization in recipe.export.gguf}


def rows_are_compared(recipe: Recipe) -> bool:
    """Whether the loss on every row is measured for every model."""
    return recipe.evaluate.compare_rows or recipe.has_rivals or bool(recipe.data.sources)


def _all_making(recipe: Recipe) -> list[Step]:
    making = [*_making(recipe)]
    return [*making, *_ensemble(recipe, making), *_preferring(recipe), *_exporting(recipe)]


def _places(making: Iterable[Step]) -> dict[str, Made]:
    places = {BASE_MODEL: BASE} | {model: place for step in making for model, place in step.makes.items()}
    last = (MOE_MODEL, MERGED_MODEL, ENSEMBLE, DPO)
    return {
        model: places[model] for model in sorted(places, key=lambda name: (name.startswith(EXPORTED), last.count(name)))}


def _making(recipe: Recipe) -> Iterator[Step]:
    seed, sft, merge = recipe.seed, recipe.moe_sft, recipe.merge
    data, precision = Made(PREPARED), recipe.sft.precision
    shared = {"data": data, "seed": seed}
    yield from _preparing(recipe)
    start = start_steps(recipe)
    yield from start.steps
    tuned = Step(UPCYCLED, "upcycle", start.given | {"seed": seed, "upcycle": as_computed(recipe)}, None if sft else MOE_MODEL)
    yield tuned
    if sft:
        given = shared | {"model": Made(UPCYCLED), "sft": sft, "checks": recipe.checks}
        if sft.merge_at == "last":
            tuned = Step(TUNED[MOE_MODEL], "sft", given, MOE_MODEL)
            yield tuned
        else:
            yield Step(TUNED[MOE_MODEL], "sft", given | {"snapshots": sft.merge_checkpoints})
            numbers = range(1, sft.merge_checkpoints + 1)
            models = {str(number): Made(TUNED[MOE_MODEL], f"{SNAPSHOTS}/{number}") for number in numbers}
            tuned = Step(CHOSEN, "choose_checkpoint", {"models": models, "data": data, "merge": merge}, MOE_MODEL)
            yield tuned
    yield from baseline_steps(recipe)
    moe = tuned.makes[MOE_MODEL]
    base: dict[str, Any] = {"base": BASE} if scales_delta(merge) else {}
    looked_at: dict[str, Any] = {"base": BASE} if needs_base(merge) or tests_headroom(merge) else {}
    yield Step(MIXED, "mix", shared | looked_at | {
        "model": moe, "merge": merge, "num_processes": recipe.sft.num_processes, "num_nodes": recipe.sft.num_nodes})
    yield Step(MERGED, "merge", base | {  # data: to measure the merged model's held-out loss
        "model": moe, "coefficients": Made(MIXED), "data": data, "precision": precision,
        "export_adapter": merge.export_adapter}, MERGED_MODEL, judged_by=(TUNED[MOE_MODEL],) if sft else ())
    for part in merge.wise:
        yield weighted(recipe, f"merged_wise_{part:g}".replace(".", "_"), {"base": 1 - part, MERGED_MODEL: part}, {
            "base": BASE, MERGED_MODEL: Made(MERGED)})


def _preparing(recipe: Recipe) -> Iterator[Step]:
    """The step ``prepare``, which provides the rows for all other steps. For a mixture, one step per source comes before it."""
    data, benchmarks = recipe.data, recipe.evaluate.benchmarks
    if not data.sources:
        yield Step(PREPARED, "prepare", {"model": BASE, "data": data, "benchmarks": benchmarks})
        return
    for place in range(len(data.sources)):
        yield Step(f"prepare_{place}", "prepare", {
            "model": BASE, "data": data.of_source(place), "benchmarks": benchmarks}, index=place)
    yield Step(PREPARED, "mix_data", {
        "prepared": {str(place): Made(f"prepare_{place}") for place in range(len(data.sources))},
        "sources": [
            {"weight": source.weight, "rows": source.rows, "replay": source.replay, "trained": data.is_trained_on(place)}
            for place, source in enumerate(data.sources)],
        "temperature": data.temperature, "replay": data.replay, "max_rows": data.max_rows, "seed": data.split_seed})


def _ensemble(recipe: Recipe, making: list[Step]) -> Iterator[Step]:
    """One more model, built from all dense models."""
    merge = recipe.merge
    if merge.ensemble == "none":
        return
    members = {model: place for model, place in _places(making).items() if model != MOE_MODEL}
    learning = {"steps": merge.ensemble_steps} if merge.ensemble == "learned" else {}
    yield Step(ENSEMBLE, "ensemble", learning | {
        "models": members, "data": Made(PREPARED), "method": merge.ensemble, "rows": merge.ensemble_rows,
        "split": "train" if merge.rows == "held_in" else "reserved",
        "precision": recipe.sft.precision}, ENSEMBLE)


def _exporting(recipe: Recipe) -> Iterator[Step]:
    """Exports of the merged model to other formats."""
    for model, quantization in exports(recipe).items():
        yield Step(f"export_{model}", "export", {
            "model": Made(MERGED), "form": "gguf", "quantization": quantization, "template": recipe.data.template,
            "data": Made(PREPARED), "precision": recipe.sft.precision}, model)


def _preferring(recipe: Recipe) -> Iterator[Step]:
    """One more model: the merged model, tuned on preferences among its own answers to a separate benchmark."""
    dpo, merged = recipe.dpo, Made(MERGED)
    if dpo.benchmark is None:
        return
    shared = {"benchmark": dpo.benchmark, "prompt_style": recipe.prompt_style, "seed": recipe.seed}
    yield Step("generate_preferences", "generate", shared | {"model": merged, "generate": dpo.sampled(recipe.generate)})
    yield Step("evaluate_preferences", "evaluate", {
        "samples": Made("generate_preferences"), "benchmark": dpo.benchmark, "evaluate": recipe.evaluate})
    yield Step(DPO, "dpo", shared | {
        "model": merged, "data": Made(PREPARED), "samples": Made("generate_preferences"),
        "verdicts": Made("evaluate_preferences"), "dpo": dpo, "checks": recipe.checks}, DPO)


def _comparing_rows(recipe: Recipe, making: list[Step]) -> Iterator[Step]:
    """The loss of every model on every held-out row, and the work of its training."""
    if not rows_are_compared(recipe):
        return
    by_role = {step.role: step for step in making}

    def trainings(role: str) -> dict[str, Made]:
        found = {name: place for needed in by_role[role].needs for name, place in trainings(needed).items()}
        starts_routers = by_role[role].stage == "upcycle" and recipe.upcycle.router_start != "random"
        return found | ({role: Made(role)} if by_role[role].stage in ("sft", "mix") or starts_routers else {})

    for model, place in _places(making).items():
        if model in exports(recipe):
            continue  # the export stage measures their losses
        yield Step(measuring_role("row_losses", model), "row_losses", {
            "model": place, "data": Made(PREPARED), "precision": recipe.sft.precision,
            "trained_by": {} if place == BASE else trainings(place.role),
            **({"clusters": Made(CLUSTERED)} if CLUSTERED in by_role else {})}, model)


def _measuring(recipe: Recipe, made: Made, model: str, role_model: str | None) -> Iterator[Step]:
    seed, generate, evaluate = recipe.seed, recipe.generate, recipe.evaluate
    style = generate.base_prompt_style if model == BASE_MODEL else recipe.prompt_style  # the style that each model knows
    for index, benchmark in enumerate(evaluate.benchmarks):
        answers = measuring_role("generate", role_model, index)
        yield Step(answers, "generate", {
            "model": made, "benchmark": benchmark, "seed": seed, "max_problems": evaluate.max_problems,
            "prompt_style": style, "generate": generate}, model, index)
        yield Step(measuring_role("evaluate", role_model, index), "evaluate", {
            "samples": Made(answers), "benchmark": benchmark, "evaluate": evaluate}, model, index)
    for index, path in enumerate(evaluate.held_out_data):
        yield Step(measuring_role("nll", role_model, index), "nll", {
            "model": made, "data": recipe.data.other(path), "precision": generate.precision}, model, index)
    for index, task in enumerate(evaluate.lm_eval_tasks):
        yield Step(measuring_role("lm_eval", role_model, index), "lm_eval", {
            "model": made, "task": task, "directory": evaluate.lm_eval_directory, "limit": evaluate.lm_eval_limit,
            "batch_size": generate.batch_size, "precision": generate.precision, "seed": seed}, model, index)


def role_of(recipe: Recipe, stage: str, model: str | None = None) -> str:
    """The role of the first step of ``stage`` in a pipeline run; with ``model``, of the first that makes or measures it.

    Raises LookupError if the run has no such step.
    """
    for step in pipeline_steps(recipe):
        if step.stage == stage and model in (None, step.model):
            return step.role
    raise LookupError(f"A run of {recipe.name} has no step of stage {stage}" + (f" for {model}." if model else "."))


def without_number(role: str) -> str:
    """Strip the benchmark number (``generate_merged_0`` becomes ``generate_merged``), as a plan has one line for all."""
    return role.rstrip("0123456789").rstrip("_")


def steps_behind(recipe: Recipe) -> dict[str, int]:
    """For every step of a pipeline run, by role, the number of steps after it on the longest path to the end of the run."""
    behind: dict[str, int] = {}
    for step in reversed(pipeline_steps(recipe)):
        behind.setdefault(step.role, 0)
        for role in step.needs:
            behind[role] = max(behind.get(role, 0), behind[step.role] + 1)
    return behind


def planned_roles(recipe: Recipe) -> dict[str, Step]:
    """The steps that ``xft plan`` estimates, by role. For steps on several benchmarks or data sets, the first represents all
    of them, under its role without the number."""
    found: dict[str, Step] = {}
    for step in pipeline_steps(recipe):
        if FACTS[step.stage].planned:
            found.setdefault(step.role if step.index is None else without_number(step.role), step)
    return found


def planned_role(recipe: Recipe, role: str) -> str | None:
    """The role in ``planned_roles`` under which a step of this role is planned; None if it is not planned."""
    known = planned_roles(recipe)
    return next((name for name in (role, without_number(role)) if name in known), None)


def what_to_change(stage: str) -> str:
    """A sentence for the user on how to reduce the memory needs of ``stage``."""
    changes = FACTS[stage].needs_less if stage in FACTS else LARGER_MACHINE
    return f"To avoid this, {changes}. `xft plan RECIPE` shows what each stage needs."
