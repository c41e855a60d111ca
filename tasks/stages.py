"""The stages as Prefect tasks. Each says what it is given and which stage of ``xft_core`` that is; nothing else."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State

from tasks.execution.carry_out import carry_out
from tasks.object_store import models
from tasks.references import ArtifactRef, PipelineRun, base_model
from tasks.retry import RETRIED, STAGE_TASK
from tasks.stopping import stop_event
from xft_core.recipe import checks
from xft_core.recipe.sections import SftConfig
from xft_core.stages.configs import (
    CompareStage,
    EvaluateStage,
    GenerateStage,
    LmEvalStage,
    MergeStage,
    MixStage,
    NllStage,
    PrepareStage,
    ReportStage,
    SftStage,
    UpcycleStage,
)

Outcome = ArtifactRef | State[Any]
Model = ArtifactRef | str


@task(name="prepare", **STAGE_TASK)
def prepare(run: PipelineRun, role: str, model: str) -> Outcome:
    """Instruction data to token sequences, with the tokenizer of ``model``."""
    recipe = run.recipe
    return carry_out(
        run, role, PrepareStage, model=model, data=recipe.data, benchmarks=recipe.evaluate.benchmarks)


@task(name="upcycle", **STAGE_TASK)
def upcycle(run: PipelineRun, role: str, model: str) -> Outcome:
    """Dense model to Mixture-of-Experts."""
    return carry_out(run, role, UpcycleStage, model=model, seed=run.recipe.seed, upcycle=run.recipe.upcycle)


@task(name="sft", **STAGE_TASK)
def sft(run: PipelineRun, role: str, model: Model, data: ArtifactRef, config: SftConfig) -> Outcome:
    """Supervised fine-tuning of a dense model or of a Mixture-of-Experts."""
    recipe = run.recipe
    return carry_out(
        run, role, SftStage, lambda metrics: checks.training_findings(metrics, recipe.checks, only_stop=True),
        model=model_name(model), data=data.path, seed=recipe.seed, sft=config, checks=recipe.checks)


@task(name="mix", **STAGE_TASK)
def mix(run: PipelineRun, role: str, model: ArtifactRef, data: ArtifactRef) -> Outcome:
    """Mixing coefficients of the tuned Mixture-of-Experts."""
    recipe = run.recipe
    return carry_out(
        run, role, MixStage,
        lambda metrics: checks.mixing_findings(metrics, recipe.merge.method, recipe.checks, only_stop=True),
        model=model_name(model), data=data.path, seed=recipe.seed, merge=recipe.merge,
        num_processes=recipe.sft.num_processes, num_nodes=recipe.sft.num_nodes)


@task(name="merge", **STAGE_TASK)
def merge(run: PipelineRun, role: str, model: ArtifactRef, coefficients: ArtifactRef, data: ArtifactRef) -> Outcome:
    """Experts to one dense model; ``data`` is there to measure its held-out loss."""
    recipe = run.recipe
    # The untouched Mixture-of-Experts stands for the base model where upcycling is the identity.
    base = model.metrics.get("held_out_nll_before") if recipe.upcycle.is_identity else None
    return carry_out(
        run, role, MergeStage, lambda metrics: checks.merge_findings(metrics, base, recipe.checks),
        model=model_name(model), coefficients=coefficients.path, data=data.path, precision=recipe.sft.precision)


@task(name="generate", **STAGE_TASK)
def generate(run: PipelineRun, role: str, model: Model, benchmark: str) -> Outcome:
    """A model's answers to one benchmark. The base model, given by its name, is asked in the form it knows."""
    recipe = run.recipe
    style = recipe.prompt_style if isinstance(model, ArtifactRef) else recipe.generate.base_prompt_style
    return carry_out(
        run, role, GenerateStage, model=model_name(model), benchmark=benchmark, seed=recipe.seed,
        max_problems=recipe.evaluate.max_problems, prompt_style=style, generate=recipe.generate)


@task(name="evaluate", **STAGE_TASK)
def evaluate(run: PipelineRun, role: str, samples: ArtifactRef, benchmark: str) -> Outcome:
    """Verdicts and pass@k for a model's answers."""
    return carry_out(
        run, role, EvaluateStage, samples=samples.path, benchmark=benchmark, evaluate=run.recipe.evaluate)


@task(name="nll", **STAGE_TASK)
def nll(run: PipelineRun, role: str, model: Model, data: str) -> Outcome:
    """A model's held-out loss on other data, in the form of the recipe's own."""
    recipe = run.recipe
    return carry_out(
        run, role, NllStage, model=model_name(model), precision=recipe.generate.precision,
        data=recipe.data.model_copy(update={
            "path": data, "format": "auto", "max_rows": None, "held_out_path": None}))


@task(name="lm-eval", **STAGE_TASK)
def lm_eval(run: PipelineRun, role: str, model: Model, name: str) -> Outcome:
    """One task of lm-evaluation-harness."""
    recipe = run.recipe
    return carry_out(
        run, role, LmEvalStage, model=model_name(model), task=name, directory=recipe.evaluate.lm_eval_directory,
        limit=recipe.evaluate.lm_eval_limit, batch_size=recipe.generate.batch_size, precision=recipe.generate.precision,
        seed=recipe.seed)


@task(name="report", **STAGE_TASK)
def report(run: PipelineRun, role: str, artifacts: dict[str, ArtifactRef]) -> Outcome:
    """Comparison table, plots and model card from everything that the run has."""
    return carry_out(
        run, role, ReportStage, recipe=run.recipe, artifacts={name: item.path for name, item in artifacts.items()})


@task(name="compare", **STAGE_TASK)
def compare(run: PipelineRun, role: str, grid: list[str], reports: dict[str, Path]) -> Outcome:
    """Table, plots and sentences from the reports of a comparison's variants, by their names."""
    return carry_out(run, role, CompareStage, recipe=run.recipe, grid=grid, reports=reports)


def model_name(model: Model) -> str:
    """A published model's directory, or a model's name as it is."""
    return str(model.path) if isinstance(model, ArtifactRef) else model


def local_base_model(run: PipelineRun) -> str:
    """The base model's name for stages; of one at an S3 address, the local directory that it is fetched to.

    Raises XftError when it cannot be had.
    """
    name = base_model(run.recipe)
    return fetch_model(run, name) if models.is_address(name) else name


@task(
    name="fetch-model", task_run_name="fetch-model", **RETRIED)
def fetch_model(run: PipelineRun, address: str) -> str:
    """The model at an S3 address as a local directory; no transfer if it is here and unchanged there."""
    return str(models.fetch(address, stop_event(run.flow_run_id), get_run_logger()))
