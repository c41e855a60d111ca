"""The end of a run: its numbers side by side in MLflow, its files there, its table and model card in Prefect.

Done for every run, also for one that reused all: a reused stage leaves nothing in the new run by itself.
"""

import json
from pathlib import Path

import yaml
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict

from tasks import remote, tracking
from tasks.references import ArtifactRef, PipelineRun
from tasks.run_files import log_directory, log_text
from tasks.stage import may_pass, stop_event
from xft_core.config import Recipe
from xft_core.reporting.page import PAGE

MODELS = ("base", "sft", "moe", "merged")


class PipelineResult(BaseModel):
    """What a finished run leaves: directories of report and merged model, and the run in MLflow."""

    model_config = ConfigDict(frozen=True)

    report: Path
    merged_model: Path
    mlflow_run_id: str
    reused_stages: int
    stages: int


@task(
    name="publish", task_run_name="publish", persist_result=False, retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2), retry_jitter_factor=0.5, retry_condition_fn=may_pass)
def publish(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> PipelineResult:
    """Show the run's results in MLflow's parent run and as Prefect artifacts. ``artifacts``: every stage's, by role."""
    report = artifacts["report"]
    for item in artifacts.values():  # those that the object store was away for
        remote.deliver(item.path, stop_event(run.flow_run_id))
    try:
        _to_mlflow(run, artifacts)
    except Exception as error:
        raise tracking.TrackingUnavailable(
            f"MLflow does not take the results: {error}. They are in {str(report.path)!r}; the same command delivers "
            "them.") from error
    name = run.recipe.name
    for file_name, key, description in (
        ("comparison.md", "comparison", f"Base, SFT, MoE and merged model of {name}"),
        ("README.md", "model-card", f"Model card of {name}"),
    ):
        text = (report.path / file_name).read_text(encoding="utf-8")
        create_markdown_artifact(_without_files(text), key=key, description=description)
    return PipelineResult(
        report=report.path, merged_model=artifacts["merge"].path, mlflow_run_id=run.mlflow_run_id,
        reused_stages=sum(item.reused for item in artifacts.values()), stages=len(artifacts))


def headline(metrics: dict[str, float]) -> dict[str, float]:
    """The report's numbers as MLflow groups them: ``merged_held_out_nll`` becomes ``merged/held_out_nll``."""
    named = {}
    for name, value in metrics.items():
        model, _, rest = name.partition("_")
        named[f"{model}/{rest}" if model in MODELS else name] = value
    return named


def _to_mlflow(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> None:
    run_id, report, merged = run.mlflow_run_id, artifacts["report"], artifacts["merge"]
    tags = {f"xft.{role}.run_id": item.mlflow_run_id for role, item in artifacts.items() if item.mlflow_run_id}
    tags |= {"xft.merged_model.path": str(merged.path), "xft.merged_model.digest": merged.digest,
             "mlflow.note.content": (report.path / "comparison.md").read_text(encoding="utf-8")[:5000]}
    tracking.log_summary(run_id, headline(tracking.scalars(report.metrics)), tags)
    data = artifacts["prepare"]
    tracking.log_data_set(
        run_id, name=Path(run.recipe.data.path).name, digest=data.digest,
        source=json.dumps({"uri": run.recipe.data.path}), profile=json.dumps(tracking.scalars(data.metrics)))
    log_text(run_id, _yaml(run.recipe), "recipe.yaml")
    log_directory(run_id, report.path, "report")
    log_directory(run_id, merged.path, "merged_model")
    log_directory(run_id, artifacts["mix"].path, "mixing", suffixes=(".json",))
    log_directory(run_id, data.path, "data", suffixes=("decontamination.json",))
    for role, item in artifacts.items():
        if item.stage in ("generate", "evaluate"):
            name = "samples" if item.stage == "generate" else "verdicts"
            log_directory(run_id, item.path, f"{name}/{role.partition('_')[2]}")
        if item.stage in ("nll", "lm_eval"):
            log_directory(run_id, item.path, f"measures/{role}")


def _yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _without_files(text: str) -> str:
    # Prefect shows Markdown without the files beside it: a picture or a link would be a broken one. MLflow has them.
    text = text.replace(f"[{PAGE}]({PAGE})", f"`report/{PAGE}` of the run in MLflow")
    return "\n".join(line for line in text.splitlines() if not line.startswith("![")) + "\n"
