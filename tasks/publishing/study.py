"""Publish the results of a study: ladder, table and plots in MLflow's parent run, and the report in Prefect."""

from pathlib import Path

from prefect import get_run_logger, task
from pydantic import BaseModel, ConfigDict

from tasks import mlflow_pages
from tasks.execution.delivery import deliver_rest, insist
from tasks.prefect_page import show_markdown, show_run_address
from tasks.publishing.pipeline import shortened
from tasks.references import ArtifactRef, PipelineRun
from tasks.retry import PUBLISH_TASK
from tasks.settings import settings
from tasks.stopping import stop_event
from tasks.tracking import runs
from tasks.tracking.client import explained
from tasks.tracking.files import log_directory
from xft_core.reporting.study.ladder import StudyResult


class StudyOutcome(BaseModel):
    """The result of a study. ``failures``: reasons by run; ``page``: its run in MLflow's pages, if their address is known."""

    model_config = ConfigDict(frozen=True)

    report: Path
    mlflow_run_id: str
    page: str | None
    claims: int
    failures: dict[str, str]


@task(**PUBLISH_TASK)
def publish_study(run: PipelineRun, made: ArtifactRef, failures: dict[str, str]) -> StudyOutcome:
    """Show the study stage's results. ``failures``: why runs are missing, by name."""
    result = StudyResult.model_validate_json((made.path / StudyResult.file_name).read_bytes())
    text = (made.path / "study.md").read_text(encoding="utf-8")
    logger, stop = get_run_logger(), stop_event(run.flow_run_id)
    deliver_rest(run, [made], stop, logger)

    def to_mlflow() -> None:
        with explained(made.path):
            note = shortened(runs.note(run, mlflow_pages.with_files(text, run.mlflow_run_id)))
            runs.log_summary(run.mlflow_run_id, numbers(result), {"mlflow.note.content": note, "xft.study.key": made.key})
            log_directory(run.mlflow_run_id, made.path, "report")

    insist(to_mlflow, stop, logger)
    ui = settings().mlflow_ui
    page = mlflow_pages.run_page(ui, run.run_experiment_id, run.mlflow_run_id) if ui else None
    if links := settings().mlflow_links:
        show_run_address(
            run.flow_run_id, "study-in-mlflow", mlflow_pages.run_page(links, run.run_experiment_id, run.mlflow_run_id),
            "The study in MLflow", f"Ladder and arms of {result.name}", logger)
    show_markdown(run.flow_run_id, "study", text, f"Study {result.name}", logger, run.mlflow_run_id)
    return StudyOutcome(
        report=made.path, mlflow_run_id=run.mlflow_run_id, page=page, claims=len(result.ladder), failures=failures)


def numbers(result: StudyResult) -> dict[str, float]:
    """Return the study run's metrics: ``arm/<name>/loss`` with spread, ``claim/<number>/difference`` with interval."""
    found: dict[str, float | None] = {}
    for name, arm in result.arms.items():
        found |= {f"arm/{name}/loss": arm.mean, f"arm/{name}/spread": arm.spread,
                  f"arm/{name}/training_flops": arm.training_flops}
    for number, rung in enumerate(result.ladder, 1):
        found |= {f"claim/{number}/difference": rung.difference, f"claim/{number}/low": rung.low,
                  f"claim/{number}/high": rung.high, f"claim/{number}/p_value": rung.corrected}
    return {name: value for name, value in found.items() if value is not None}
