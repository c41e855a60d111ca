"""Publish the results of a comparison: metrics, table, report and plots in MLflow's parent run; in Prefect the table, the
report and links to MLflow's pages that compare the variants."""

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from pydantic import BaseModel, ConfigDict

from tasks import mlflow_pages
from tasks.execution.delivery import deliver_rest, insist
from tasks.prefect_log import reason
from tasks.prefect_page import show_markdown, show_run_address, show_table
from tasks.publishing.headline import headline
from tasks.publishing.pipeline import shortened
from tasks.publishing.variant_results import VariantResult
from tasks.references import ArtifactRef, PipelineRun
from tasks.retry import PUBLISH_TASK
from tasks.settings import settings
from tasks.stopping import stop_event
from tasks.tracking import charts, experiments, runs, saved_views
from tasks.tracking.client import client, explained, scalars
from tasks.tracking.files import log_directory, log_text
from xft_core.recipe.grid import parse_grid
from xft_core.reporting.variants.findings import best_group
from xft_core.reporting.variants.markdown import MODEL_TITLES, NEWEST_FIRST, cell, wide_rows
from xft_core.reporting.variants.summary import OVER_SFT, Variants

TABLE = "variants.json"


class ComparisonResult(BaseModel):
    """The result of a comparison. ``failures``: reasons by variant; ``compare_page`` and ``charts_page``: MLflow's pages, if
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


def announce(run: PipelineRun, grid: list[str]) -> None:
    """Prepare MLflow's pages before the variants begin: the charts in which their curves appear."""
    try:
        saved_views.save(run, [(axis.fields, axis.values) for axis in parse_grid(grid)])
    except Exception as error:  # they are saved again at the end, with retries
        get_run_logger().warning("MLflow did not accept the comparison's charts yet; the run continues. %s", reason(error))


@task(**PUBLISH_TASK)
def publish_comparison(
    run: PipelineRun, compared: ArtifactRef, variants: dict[str, VariantResult], failures: dict[str, str],
) -> ComparisonResult:
    """Show the compare stage's results. ``variants``: those that finished, by name; ``failures``: reasons of the others."""
    result = Variants.model_validate_json((compared.path / Variants.file_name).read_bytes())
    text = (compared.path / "comparison.md").read_text(encoding="utf-8")
    run_ids = [variants[item.name].mlflow_run_id for item in result.runs]
    logger, stop = get_run_logger(), stop_event(run.flow_run_id)
    deliver_rest(run, [compared], stop, logger)

    def to_mlflow() -> None:
        with explained(compared.path):
            _to_mlflow(run, compared, result, text, failures)
            metrics = [name for run_id in run_ids for name in client().get_run(run_id).data.metrics]
            saved_views.save(run, result.axes, list(dict.fromkeys(metrics)))
            experiments.show_newest(run.run_experiment_id, _newest(run, text))

    insist(to_mlflow, stop, logger)

    def pages(ui: str | None) -> tuple[str, str] | tuple[None, None]:
        if ui is None:
            return None, None
        experiment = run.run_experiment_id
        return (mlflow_pages.compare_page(ui, experiment, run_ids),
                mlflow_pages.charts_page(ui, experiment, charts.view_key(run.mlflow_run_id)))

    name = run.recipe.name
    links = zip(pages(settings().mlflow_links), (
        ("compare-in-mlflow", "Compare the variants in MLflow", "Parameters and metrics side by side"),
        ("charts-in-mlflow", "Charts of the variants in MLflow", "Losses by variant, parallel coordinates and bars"),
    ), strict=True)
    for address, (key, link_text, what) in links:
        if address:
            show_run_address(run.flow_run_id, key, address, link_text, f"{what}: {len(run_ids)} variants of {name}", logger)
    show_table(
        run.flow_run_id, "variants-table", _table(result), f"Variants of {name}: mean ± spread over seeds", logger)
    show_markdown(run.flow_run_id, "variants", text, f"Comparison of variants of {name}", logger, run.mlflow_run_id)
    page, chart_page = pages(settings().mlflow_ui)
    return ComparisonResult(
        report=compared.path, mlflow_run_id=run.mlflow_run_id, compare_page=page, charts_page=chart_page,
        variants=len(result.runs), failures=failures, stages=sum(item.stages for item in variants.values()),
        reused_stages=sum(item.reused_stages for item in variants.values()))


def _to_mlflow(
    run: PipelineRun, compared: ArtifactRef, result: Variants, text: str, failures: dict[str, str],
) -> None:
    run_id = run.mlflow_run_id
    text = mlflow_pages.with_files(text, run_id)
    tags = {"mlflow.note.content": shortened(runs.note(run, text)), "xft.compare.key": compared.key,
            "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])}
    if best := best_group(result):
        tags["xft.best_group"] = best.name  # whose means the metrics are
    if failures:
        tags["xft.failed"] = shortened("\n".join(f"{name}: {reason}" for name, reason in failures.items()), "\n…")
    runs.log_summary(run_id, headline(scalars(compared.metrics)), tags)
    log_text(run_id, _split(wide_rows(result)), TABLE)
    log_text(run_id, text, "comparison.md")  # see pipeline.py
    log_directory(run_id, compared.path, "report")


def _newest(run: PipelineRun, text: str) -> str:
    """Return the experiment description's part about its newest comparison: a link and its plots."""
    page = mlflow_pages.run_page("", run.run_experiment_id, run.mlflow_run_id)
    pictures = [line for line in mlflow_pages.with_files(text, run.mlflow_run_id).splitlines() if line.startswith("![")]
    return "\n\n".join([f"Newest comparison: [{run.recipe.name}]({page})", *pictures])


def _split(rows: list[dict[str, Any]]) -> str:
    """Return rows in the form that MLflow shows as a table. MLflow's log_table would append to an earlier attempt's table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return json.dumps({"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]})


def _table(result: Variants) -> list[dict[str, str]]:
    """Return the table for users: merged model first, numbers with their spread, pass@1 in percent."""
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
