"""The models of a pipeline run side by side: for MLflow's Models tab, with their training and evaluation data, and as a table
of every problem with the models' verdicts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.references import ArtifactRef, PipelineRun, base_model, of_stage
from tasks.tracking.client import scalars
from tasks.tracking.logged_models import DataSet, Measured, MeasuredModel
from xft_core.recipe.steps import BASE, BASE_MODEL, MERGED_MODEL, MOE_MODEL, PREPARED, model_places, pipeline_steps
from xft_core.reporting.run.comparison import Row, Score
from xft_core.reporting.run.evidence import benchmark_titles
from xft_core.reporting.variants.summary import read_comparison
from xft_core.store.manifest import read_manifest
from xft_core.store.results.evaluate import EvaluateMetrics, EvaluationFile

VERDICTS = "verdicts.json"
LONGEST_DETAIL = 200  # characters of an error
INSTRUCTIONS = {"prompt": "string", "response": "string"}  # the columns of a row of any form, after its template
PROBLEMS = {"task_id": "string", "prompt": "string"}
Artifacts = Mapping[str, ArtifactRef]


def data_sets(run: PipelineRun, artifacts: Artifacts) -> list[DataSet]:
    """Return the data that the run's models were trained and measured on."""
    data, paths = artifacts[PREPARED], run.recipe.data.paths
    training = DataSet(
        _data_name(run), _digest(data, "train.safetensors"), "training", ", ".join(paths), INSTRUCTIONS, scalars(data.metrics))
    return [training, _held_out(run, artifacts), *_benchmarks(run, artifacts).values()]


def measured_models(run: PipelineRun, artifacts: Artifacts) -> list[MeasuredModel]:
    """Return the models of the run's report with their metrics."""
    recipe, places = run.recipe, model_places(run.recipe)
    report = of_stage(artifacts, recipe, "report")
    benchmarks, held_out = _benchmarks(run, artifacts), _held_out(run, artifacts)
    found = []
    for row in read_comparison(report.path).rows:
        place, graded = places[row.model], _graded(run, artifacts, row.model)
        own = next(iter(graded.values()), report)
        parameters = {"parameters": row.parameters_total, "active_parameters": row.parameters_active}
        measured: list[tuple[ArtifactRef, DataSet | None, Mapping[str, float | None]]] = [
            (own, None, parameters), (own, held_out, {"held_out_nll": row.held_out_nll})]
        measured += [(graded[score.benchmark], benchmarks[score.benchmark], _rates(score))
                     for score in row.scores if score.benchmark in graded]
        found.append(MeasuredModel(
            name=_name(run, row), kind=row.model,
            digest=_base_digest(run, artifacts) if place == BASE else f"{artifacts[place.role].digest}{place.part}",
            made_here=place != BASE and not artifacts[place.role].reused,
            parameters=_parameters(run, row.model),
            tags={"xft.recipe": recipe.name, "xft.path": base_model(recipe) if place == BASE else str(
                artifacts[place.role].path / place.part), "prefect.flow_run_id": run.flow_run_id},
            numbers=[Measured(item.mlflow_run_id or run.mlflow_run_id, of, scalars(dict(numbers)))
                     for item, of, numbers in measured if scalars(dict(numbers))]))
    return found


def verdict_table(run: PipelineRun, artifacts: Artifacts) -> str:
    """Return every answer with its verdicts, in the form that MLflow shows as a table and compares between runs."""
    columns = ["benchmark", "problem", "model", "answer", "verdict", "with extended tests", "what went wrong"]
    lines: list[list[Any]] = []
    for model in model_places(run.recipe):
        for title, item in _graded(run, artifacts, model).items():
            content = EvaluationFile.read(item.path)
            lines += [
                [title, problem.task_id, model, number, sample.base, sample.plus, sample.detail[:LONGEST_DETAIL]]
                for problem in (content.problems if content else ()) for number, sample in enumerate(problem.samples)]
    return json.dumps({"columns": columns, "data": lines})


def _held_out(run: PipelineRun, artifacts: Artifacts) -> DataSet:
    data, own = artifacts[PREPARED], run.recipe.data.held_out_path
    counts = {name: value for name, value in scalars(data.metrics).items() if name.startswith("held_out")}
    name, digest = f"{Path(own).name if own else _data_name(run)} (held out)", _digest(data, "held_out.safetensors")
    return DataSet(name, digest, "validation", own or ", ".join(run.recipe.data.paths), INSTRUCTIONS, counts)


def _data_name(run: PipelineRun) -> str:
    paths = run.recipe.data.paths
    return Path(paths[0]).name if len(paths) == 1 else f"{run.recipe.name}, {len(paths)} sources"


def _benchmarks(run: PipelineRun, artifacts: Artifacts) -> dict[str, DataSet]:
    """Return the benchmarks by their titles in the report."""
    evaluate = run.recipe.evaluate
    sources = dict(zip(benchmark_titles(evaluate.benchmarks), evaluate.benchmarks, strict=True))
    return {
        title: DataSet(
            title, read_manifest(item.path).parents["benchmark"], "evaluation", sources[title], PROBLEMS,
            {name: value for name, value in scalars(item.metrics).items() if name == "problems"})
        for title, item in _graded(run, artifacts, MERGED_MODEL).items()}


def _graded(run: PipelineRun, artifacts: Artifacts, model: str) -> dict[str, ArtifactRef]:
    """Return a model's evaluations by benchmark title, without skipped ones."""
    titles = benchmark_titles(run.recipe.evaluate.benchmarks)
    return {titles[step.index]: artifacts[step.role] for step in pipeline_steps(run.recipe)
            if step.stage == "evaluate" and step.model == model and step.index is not None
            and not EvaluateMetrics.of(artifacts[step.role]).skipped}


def _rates(score: Score) -> dict[str, float | None]:
    rates = {"pass_at_1": score.rate("base"), "plus_pass_at_1": score.rate("plus")}
    return {name: rate.value for name, rate in rates.items() if rate is not None}


def _name(run: PipelineRun, row: Row) -> str:
    """Name a model after the fields it depends on: ``demo-merged-4x3-xft-learned-seed0``."""
    recipe, moe = run.recipe, run.recipe.upcycle
    experts, seed = f"-{moe.num_experts}x{moe.num_experts_per_tok}-{moe.normalization}", f"-seed{recipe.seed}"
    of = {BASE_MODEL: "", MOE_MODEL: f"{experts}{seed}", MERGED_MODEL: f"{experts}-{recipe.merge.method}{seed}"}
    return f"{recipe.name}-{row.model}{of.get(row.model, seed)}"


def _parameters(run: PipelineRun, model: str) -> dict[str, str]:
    recipe, moe = run.recipe, run.recipe.upcycle
    found: dict[str, Any] = {"model.path": recipe.model.path}
    if model != BASE_MODEL:
        found |= {"seed": recipe.seed, "data.path": ", ".join(recipe.data.paths)}
    if model in (MOE_MODEL, MERGED_MODEL):
        found |= {"upcycle.num_experts": moe.num_experts, "upcycle.num_experts_per_tok": moe.num_experts_per_tok,
                  "upcycle.normalization": moe.normalization}
    if model == MERGED_MODEL:
        found |= {"merge.method": recipe.merge.method, "merge.shared_expert_weight": recipe.merge.shared_expert_weight}
    return {name: str(value) for name, value in found.items()}


def _base_digest(run: PipelineRun, artifacts: Artifacts) -> str:
    upcycled = read_manifest(of_stage(artifacts, run.recipe, "upcycle").path)
    return upcycled.parents.get("model", base_model(run.recipe))


def _digest(data: ArtifactRef, name: str) -> str:
    return next(entry.sha256 for entry in read_manifest(data.path).files if entry.path == name)
