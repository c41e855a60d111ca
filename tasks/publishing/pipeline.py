"""Publish the results of a run: metrics side by side in MLflow, files there, table and model card in Prefect.

This happens for every run, even if it reused all stages, because a reused stage adds nothing to the new run by itself.
"""

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.runtime import flow_run
from pydantic import Field

from tasks import mlflow_pages
from tasks.execution.delivery import deliver_rest, insist
from tasks.object_store.artifacts import keep
from tasks.prefect_log import Logger
from tasks.prefect_page import show_markdown, show_table, without_front_matter
from tasks.publishing.approval import announce_champion
from tasks.publishing.headline import headline, of_variant
from tasks.publishing.models import VERDICTS, data_sets, measured_models, verdict_table
from tasks.references import ArtifactRef, PipelineRun, RunOutcome, of_stage
from tasks.retry import PUBLISH_TASK
from tasks.settings import settings
from tasks.stopping import stop_event
from tasks.tracking import registry, runs
from tasks.tracking.client import explained, scalars
from tasks.tracking.files import log_directory, log_text
from tasks.tracking.logged_models import log_data_sets, log_models
from tasks.tracking.model import log_model
from tasks.variant_tags import variant_of
from xft_core.recipe.sections import RegistryConfig
from xft_core.recipe.steps import FACTS, MOE_MODEL
from xft_core.reporting.variants.summary import read_comparison

LONGEST_TAG = 5000


class PipelineResult(RunOutcome):
    """The outcome, with the run's page in MLflow if the address is known. ``proposal``: a version that a user must approve as
    champion; ``metrics``: those used to compare runs."""

    mlflow_page: str | None
    proposal: registry.Proposal | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    reused_stages: int


@task(**PUBLISH_TASK)
def publish(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> PipelineResult:
    """Show the run's results in MLflow's parent run and as Prefect artifacts. ``artifacts``: every stage's, by role."""
    report, logger, stop = of_stage(artifacts, run.recipe, "report"), get_run_logger(), stop_event(run.flow_run_id)
    deliver_rest(run, artifacts.values(), stop, logger)
    card = (report.path / "README.md").read_text(encoding="utf-8")

    def to_mlflow() -> registry.Registration | None:
        with explained(report.path):
            whole = _to_mlflow(run, artifacts)
            return None if unregistered else registry.register(run, artifacts, card, whole, keep, logger)

    unregistered = _unregistered(run.recipe.registry)
    registered = insist(to_mlflow, stop, logger)
    ui = settings().mlflow_ui
    _to_prefect(run, report.path, card, unregistered or _standing(registered), logger)
    announce_champion(registered, logger)
    return PipelineResult(
        report=report.path, merged_model=of_stage(artifacts, run.recipe, "merge").path, mlflow_run_id=run.mlflow_run_id,
        mlflow_page=mlflow_pages.run_page(ui, run.run_experiment_id, run.mlflow_run_id) if ui else None,
        registered=str(registered) if registered else None, proposal=registered.proposal if registered else None,
        metrics=headline(scalars(report.metrics)), reused_stages=sum(item.reused for item in artifacts.values()),
        stages=len(artifacts))


def shortened(text: str, rest: str = "\n\n… the rest is in report/comparison.md") -> str:
    """Return as many complete lines of a text as fit in a tag. A cut text ends in ``rest``, which says where the rest is."""
    if len(text) <= LONGEST_TAG:
        return text
    return text[:LONGEST_TAG - len(rest)].rpartition("\n")[0] + rest


def _to_mlflow(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> bool:
    """Send the results to MLflow. Returns whether the merged model's weights are there too."""
    run_id = run.mlflow_run_id
    merged, report = (of_stage(artifacts, run.recipe, stage) for stage in ("merge", "report"))
    tags = {f"xft.{role}.run_id": item.mlflow_run_id for role, item in artifacts.items() if item.mlflow_run_id}
    reused = sum(item.reused for item in artifacts.values())
    tags |= {"xft.report.key": report.key, "xft.stages": str(len(artifacts)), "xft.reused_stages": str(reused)}
    text = mlflow_pages.with_files((report.path / "comparison.md").read_text(encoding="utf-8"), run_id)
    tags |= {"xft.merged_model.path": str(merged.path), "xft.merged_model.digest": merged.digest,
             "mlflow.note.content": shortened(runs.note(run, text)),
             "mlflow.loggedArtifacts": json.dumps([{"path": VERDICTS, "type": "table"}])}
    runs.log_summary(run_id, _numbers(run, report), tags)
    log_data_sets(run_id, data_sets(run, artifacts))
    log_models(run, measured_models(run, artifacts))
    log_text(run_id, verdict_table(run, artifacts), VERDICTS)
    log_text(run_id, runs.recipe_text(run.recipe), runs.RECIPE_FILE)
    log_text(run_id, text, "comparison.md")  # the one in the report's directory has relative pictures and a recorded digest
    for role, item in artifacts.items():
        facts = FACTS[item.stage]
        if facts.shown:
            log_directory(run_id, item.path, facts.shown.format(role=role, of=role.partition("_")[2]), facts.suffixes)
    return log_model(run, merged.path, report.path / "README.md")


def _numbers(run: PipelineRun, report: ArtifactRef) -> dict[str, float]:
    found = headline(scalars(report.metrics))
    found |= {f"{row.model}/active_parameters": float(row.parameters_active)
              for row in read_comparison(report.path).rows if row.model == MOE_MODEL and row.parameters_active}
    return of_variant(found) if run.variant else found


def _unregistered(section: RegistryConfig) -> str | None:
    """Return why a run's model is not registered; None if it is."""
    if section.register == "none":
        return "Not registered (registry.register is none)."
    if section.register == "champion" and variant_of(flow_run.tags or ()):
        return (
            "Not registered: this is a variant of a comparison. Run its recipe on its own, which reuses all stages, or set "
            "registry.register to all.")
    return None


def _standing(registered: registry.Registration | None) -> str:
    """Return the model's standing in the registry as Markdown, with a link to its version."""
    if registered is None or registered.version is None:
        return f"Not registered in MLflow: {registered.why if registered else 'its recipe says so.'}"
    pages = settings().mlflow_links
    place = f"[MLflow]({mlflow_pages.version_page(pages, registered.name, registered.version)})" if pages else "MLflow"
    return f"Registered in {place} as {registered}"


def _to_prefect(run: PipelineRun, report: Path, card: str, standing: str, logger: Logger) -> None:
    """Show the results in Prefect, the most important one last, because the newest is on top."""
    name, flow_run_id = run.recipe.name, run.flow_run_id
    text = (report / "comparison.md").read_text(encoding="utf-8")
    card = f"> {standing}\n\n{without_front_matter(card)}"
    show_markdown(flow_run_id, "model-card", card, f"Model card of {name}", logger, run.mlflow_run_id)
    show_table(
        flow_run_id, "comparison", _table(report), f"Base, SFT, MoE and merged model of {name}. {standing}", logger)
    show_markdown(flow_run_id, "report", text, f"What the numbers of {name} say", logger, run.mlflow_run_id)


def _table(report: Path) -> list[dict[str, Any]]:
    """Return the rows of comparison.json, flat: percentages with one decimal, loss in nats per response token."""
    rows = []
    for row in read_comparison(report).rows:
        shown: dict[str, Any] = {"model": row.name, "held-out NLL": _rounded(row.held_out_nll, 4)}
        for score in row.scores:
            for tests, plus in (("base", ""), ("plus", "+")) if score.extended_tests else (("base", ""),):
                shown[f"{score.benchmark}{plus} pass@1 %"] = score.text(tests)
        shown |= {measure.title: _rounded(measure.value, 4) for measure in row.measures}  # no two have one title
        rows.append(shown | {"parameters": row.parameters_total, "active per token": row.parameters_active})
    return rows


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
