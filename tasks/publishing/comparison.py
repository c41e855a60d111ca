"""The end of a comparison: its numbers, table, report and plots in MLflow's parent run, and in Prefect the table, the
report and a link to MLflow's page that compares the variants."""

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from pydantic import BaseModel, ConfigDict

from tasks import mlflow_pages
from tasks.execution.delivery import deliver_rest, insist
from tasks.prefect_page import show_address, show_markdown, show_table
from tasks.publishing.headline import headline
from tasks.publishing.pipeline import shortened
from tasks.publishing.variant_results import VariantResult
from tasks.references import ArtifactRef, PipelineRun
from tasks.retry import PUBLISH_TASK
from tasks.settings import settings
from tasks.stopping import stop_event
from tasks.tracking import charts as comparison_view
from tasks.tracking import runs
from tasks.tracking.client import client, explained, scalars
from tasks.tracking.files import log_directory, log_text
from xft_core.reporting.variants.findings import best_group
from xft_core.reporting.variants.markdown import MODEL_TITLES, NEWEST_FIRST, cell, wide_rows
from xft_core.reporting.variants.summary import OVER_SFT, Variants

TABLE = "variants.json"


class ComparisonResult(BaseModel):
    """What a comparison leaves. ``failures``: reasons by variant; ``compare_page`` and ``charts_page``: MLflow's pages, if
    their address is known."""

    model_config = ConfigDict(frozen=True)

    report: Path
    mlflow_run_id: str
    compare_page: str | None
    charts_page: str | None
    variants: int
    failures: dict[str, str]
    reused_stages: int
    stages: int


@task(**PUBLISH_TASK)
def publish_comparison(
    run: PipelineRun, compared: ArtifactRef, variants: dict[str, VariantResult], failures: dict[str, str],
) -> ComparisonResult:
    """Show what the compare stage made. ``variants``: those that finished, by name; ``failures``: reasons of the others."""
    result = Variants.model_validate_json((compared.path / Variants.file_name).read_bytes())
    text = (compared.path / "comparison.md").read_text(encoding="utf-8")
    run_ids = [variants[item.name].mlflow_run_id for item in result.runs]
    logger, stop = get_run_logger(), stop_event(run.flow_run_id)
    deliver_rest(run, [compared], stop, logger)

    def to_mlflow() -> str:
        with explained(compared.path):
            experiment_id = runs.experiment_of(run.mlflow_run_id)
            _to_mlflow(run, compared, result, text, failures)
            _save_view(experiment_id, run, result, run_ids)
            return experiment_id

    experiment_id = insist(to_mlflow, stop, logger)
    ui = settings().mlflow_ui
    page = mlflow_pages.compare_page(ui, experiment_id, run_ids) if ui else None
    view_key = comparison_view.view_key(run.mlflow_run_id)
    charts = mlflow_pages.charts_page(ui, experiment_id, view_key) if ui else None
    name = run.recipe.name
    show_table("variants-table", _table(result), f"Variants of {name}: mean ± spread over seeds", logger)
    show_markdown("variants", text, f"Comparison of variants of {name}", logger)
    for address, key, link_text, what in (
        (page, "compare-in-mlflow", "Compare the variants in MLflow", "Parameters and metrics side by side"),
        (charts, "charts-in-mlflow", "Charts of the variants in MLflow", "Table, parallel coordinates and bars"),
    ):
        if address:
            show_address(key, address, link_text, f"{what}: {len(run_ids)} variants of {name}", logger)
    return ComparisonResult(
        report=compared.path, mlflow_run_id=run.mlflow_run_id, compare_page=page, charts_page=charts,
        variants=len(result.runs), failures=failures, stages=sum(item.stages for item in variants.values()),
        reused_stages=sum(item.reused_stages for item in variants.values()))


def _to_mlflow(
    run: PipelineRun, compared: ArtifactRef, result: Variants, text: str, failures: dict[str, str],
) -> None:
    run_id = run.mlflow_run_id
    tags = {"mlflow.note.content": shortened(mlflow_pages.with_files(text, run_id)), "xft.compare.key": compared.key,
            "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])}
    if best := best_group(result):
        tags["xft.best_group"] = best.name  # whose means the metrics are
    if failures:
        tags["xft.failed"] = shortened("\n".join(f"{name}: {reason}" for name, reason in failures.items()), "\n…")
    runs.log_summary(run_id, headline(scalars(compared.metrics)), tags)
    log_text(run_id, _split(wide_rows(result)), TABLE)
    log_directory(run_id, compared.path, "report")


def _save_view(experiment_id: str, run: PipelineRun, result: Variants, run_ids: list[str]) -> None:
    """Columns and charts of MLflow's pages for this comparison."""
    fields = {
        field: all(isinstance(step[place], int | float) and not isinstance(step[place], bool) for step in steps)
        for names, steps in result.axes for place, field in enumerate(names) if len(steps) > 1}
    # Of all of them: the first may lack what others have.
    metrics = list(dict.fromkeys(name for run_id in run_ids for name in client().get_run(run_id).data.metrics))
    client().set_experiment_tag(
        experiment_id, f"{comparison_view.VIEW_TAG}{comparison_view.view_key(run.mlflow_run_id)}",
        comparison_view.view(run.mlflow_run_id, fields, metrics))


def _split(rows: list[dict[str, Any]]) -> str:
    """Rows in the form that MLflow shows as a table. Its own log_table would add to that of an earlier attempt."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return json.dumps({"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]})


def _table(result: Variants) -> list[dict[str, str]]:
    """The table for a person: merged model first, numbers with their spread, pass@1 in percent."""
    first, *others = NEWEST_FIRST
    keys = [key for model in (first, OVER_SFT, *others)
            for key in dict.fromkeys(key for group in result.groups for key in group.numbers)
            if key.startswith(f"{model}/")]
    return [
        {"variant": group.name, "seeds": str(len(group.seeds)), **{_column(key): cell(group, key) for key in keys}}
        for group in result.groups]


def _column(key: str) -> str:
    model, name, *benchmark = key.split("/", 2)
    model = "merged over SFT" if model == OVER_SFT else MODEL_TITLES.get(model, model)
    if not benchmark:
        return f"{model} NLL"
    return f"{model} {benchmark[0]}{'+' if name.startswith('plus') else ''} pass@1 %"
