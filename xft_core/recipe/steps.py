"""The pipeline as data: what it knows of each stage, and the steps that a recipe makes of them, in the order of the work.

    prepare ─┬─ sft (dense baseline) ───────────────┐
    upcycle ─┴─ sft (MoE) ─ mix ─ merge ────────────┴─ generate ─ evaluate, nll, lm_eval: base, sft, moe, merged ─ report

A stage is a kind of work (``sft``); a step is one piece of it in a run (``sft_moe``, ``sft_baseline``). Submitting, planning,
preflight, the report and what MLflow shows all go through these steps. To add a stage: write ``xft_core/stages/NAME.py`` with
its StageConfig and its ``run``, and add its facts and its step here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xft_core.recipe.sections import Recipe

MODELS = ("base", "sft", "moe", "merged")
LARGER_MACHINE = "use a larger machine or a smaller model"


@dataclass(frozen=True)
class StageFacts:
    """What the pipeline knows of a stage beside its configuration.

    ``heavy``: it takes one of the machine's compute slots. ``needs_less``: what to change when memory is short.
    ``planned``: how ``xft plan`` estimates it (a name in planning/plan.py), None to leave it out. ``shown``: directory of its
    artifact in the run's MLflow files, from ``{role}`` and ``{of}`` (the role without its first word); None for nothing;
    ``suffixes``: of the files shown, None for all. ``own_section``: the report tells of it in sections of its own; the
    numbers of any other stage are in a table."""

    heavy: bool = True
    needs_less: str = LARGER_MACHINE
    planned: str | None = None
    shown: str | None = None
    suffixes: tuple[str, ...] | None = None
    own_section: bool = True


# In the order of the work. Grading is heavy: its time limits mean nothing on cores that train a model.
FACTS: dict[str, StageFacts] = {
    "prepare": StageFacts(heavy=False, shown="data", suffixes=("decontamination.json",)),
    "upcycle": StageFacts(planned="upcycling", needs_less="lower upcycle.num_experts"),
    "sft": StageFacts(planned="training", needs_less=(
        "lower sft.micro_batch_size, turn on sft.gradient_checkpointing, use sft.optimizer: adafactor or sft.precision: bf16, "
        "or lower data.max_length")),
    "mix": StageFacts(planned="mixing", needs_less="lower merge.micro_batch_size, or use merge.precision: bf16",
                      shown="mixing", suffixes=(".json",)),
    "merge": StageFacts(planned="merging"),
    "generate": StageFacts(planned="generation", shown="samples/{of}", needs_less=(
        "lower generate.batch_size, use generate.precision: bf16, or lower generate.max_new_tokens")),
    "evaluate": StageFacts(shown="verdicts/{of}", needs_less="lower evaluate.workers or evaluate.memory_limit_mb"),
    "nll": StageFacts(shown="measures/{role}", needs_less="use generate.precision: bf16"),
    "lm_eval": StageFacts(shown="measures/{role}",
                          needs_less="lower generate.batch_size, or use generate.precision: bf16"),
    "report": StageFacts(heavy=False, shown="report"),
    "compare": StageFacts(heavy=False),
}


@dataclass(frozen=True)
class Made:
    """Stands in a step's fields for the directory that the step ``role`` makes."""

    role: str


BASE = Made("base")  # stands for the base model


@dataclass(frozen=True)
class Step:
    """One piece of a run. ``given``: the fields of the stage's configuration, with Made and BASE for directories;
    ``model``: which of MODELS it makes or measures; ``index``: place in the recipe's list of benchmarks, data or tasks."""

    role: str
    stage: str
    given: Mapping[str, Any]
    model: str | None = None
    index: int | None = None

    @property
    def needs(self) -> list[str]:
        """Roles of the steps that must be done before this one."""
        values = [item for value in self.given.values() for item in (value.values() if isinstance(value, dict) else [value])]
        return list(dict.fromkeys(item.role for item in values if isinstance(item, Made) and item != BASE))

    def fields(self, base: str, directory: Callable[[str], str]) -> dict[str, Any]:
        """Fields of the stage's configuration. ``base``: the base model; ``directory``: of what a role makes."""
        def placed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: placed(item) for name, item in value.items()}
            if isinstance(value, Made):
                return base if value == BASE else directory(value.role)
            return value

        return {name: placed(value) for name, value in self.given.items()}


def pipeline_steps(recipe: Recipe) -> list[Step]:
    """The steps of a pipeline run, each after those that it needs."""
    steps = [*_making(recipe)]
    for model in MODELS:
        made = BASE if model == "base" else next((Made(step.role) for step in steps if step.model == model), None)
        if made:  # there may be no baseline
            steps += _measuring(recipe, made, model, f"_{model}")
    everything = {step.role: Made(step.role) for step in steps}
    return [*steps, Step("report", "report", {"recipe": recipe, "artifacts": everything})]


def evaluation_steps(recipe: Recipe) -> list[Step]:
    """The steps of an evaluation of one model."""
    return [*_measuring(recipe, BASE, "base", "")]


def compare_step(recipe: Recipe, grid: list[str], reports: Mapping[str, Any]) -> Step:
    """The one step of a comparison beside its variants' own. ``reports``: directories by the variants' names."""
    return Step("compare", "compare", {"recipe": recipe, "grid": grid, "reports": reports})


def _making(recipe: Recipe) -> Iterator[Step]:
    seed, sft, merge = recipe.seed, recipe.sft, recipe.merge
    data, moe = Made("prepare"), Made("sft_moe")
    shared = {"data": data, "seed": seed}
    yield Step("prepare", "prepare", {"model": BASE, "data": recipe.data, "benchmarks": recipe.evaluate.benchmarks})
    yield Step("upcycle", "upcycle", {"model": BASE, "seed": seed, "upcycle": recipe.upcycle})
    yield Step("sft_moe", "sft", shared | {"model": Made("upcycle"), "sft": sft, "checks": recipe.checks}, "moe")
    if recipe.baseline.enabled:
        dense = recipe.baseline.applied_to(sft)
        yield Step("sft_baseline", "sft", shared | {"model": BASE, "sft": dense, "checks": recipe.checks}, "sft")
    yield Step("mix", "mix", shared | {
        "model": moe, "merge": merge, "num_processes": sft.num_processes, "num_nodes": sft.num_nodes})
    yield Step("merge", "merge", {  # with the data, to measure the merged model's held-out loss
        "model": moe, "coefficients": Made("mix"), "data": data, "precision": sft.precision,
        "export_adapter": merge.export_adapter}, "merged")


def _measuring(recipe: Recipe, made: Made, model: str, suffix: str) -> Iterator[Step]:
    seed, generate, evaluate = recipe.seed, recipe.generate, recipe.evaluate
    style = generate.base_prompt_style if model == "base" else recipe.prompt_style  # each in the form that it knows
    for index, benchmark in enumerate(evaluate.benchmarks):
        answers = f"generate{suffix}_{index}"
        yield Step(answers, "generate", {
            "model": made, "benchmark": benchmark, "seed": seed, "max_problems": evaluate.max_problems,
            "prompt_style": style, "generate": generate}, model, index)
        yield Step(f"evaluate{suffix}_{index}", "evaluate", {
            "samples": Made(answers), "benchmark": benchmark, "evaluate": evaluate}, model, index)
    for index, path in enumerate(evaluate.held_out_data):
        data = recipe.data.model_copy(update={"path": path, "format": "auto", "max_rows": None, "held_out_path": None})
        yield Step(f"nll{suffix}_{index}", "nll", {
            "model": made, "data": data, "precision": generate.precision}, model, index)
    for index, task in enumerate(evaluate.lm_eval_tasks):
        yield Step(f"lm_eval{suffix}_{index}", "lm_eval", {
            "model": made, "task": task, "directory": evaluate.lm_eval_directory, "limit": evaluate.lm_eval_limit,
            "batch_size": generate.batch_size, "precision": generate.precision, "seed": seed}, model, index)


def without_number(role: str) -> str:
    """``generate_merged`` of ``generate_merged_0``, which is on the first benchmark: a plan has one line for all."""
    return role.rstrip("0123456789").rstrip("_")


def planned_roles(recipe: Recipe) -> dict[str, Step]:
    """The steps that ``xft plan`` estimates, by role without its number; of several the first stands for all."""
    steps = [step for step in pipeline_steps(recipe) if FACTS[step.stage].planned]
    found: dict[str, Step] = {}
    for step in steps:
        found.setdefault(without_number(step.role), step)
    return found


def what_to_change(stage: str) -> str:
    """What makes ``stage`` need less memory, as a sentence for people."""
    changes = FACTS[stage].needs_less if stage in FACTS else LARGER_MACHINE
    return f"To need less, {changes}; `xft plan RECIPE` says what each stage takes."
