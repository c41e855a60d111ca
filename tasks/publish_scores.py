"""The end of an evaluation: its numbers in MLflow's parent run, and as a table in Prefect."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.tasks import exponential_backoff

from tasks import tracking
from tasks.references import ArtifactRef, PipelineRun
from tasks.run_files import log_directory
from tasks.run_page import show_link, show_table
from tasks.stage import may_pass

Scores = dict[str, dict[str, float]]


@task(
    name="publish", task_run_name="publish", persist_result=False, retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2), retry_jitter_factor=0.5, retry_condition_fn=may_pass)
def publish_scores(run: PipelineRun, graded: dict[str, ArtifactRef]) -> Scores:
    """Show pass@k of every benchmark. ``graded``: what the evaluate stage made, by benchmark. Returns the numbers."""
    scores = {benchmark: tracking.scalars(item.metrics) for benchmark, item in graded.items()}
    try:
        for benchmark, numbers in scores.items():
            label = Path(benchmark.rpartition(":")[2]).name.partition(".")[0]
            tracking.log_summary(run.mlflow_run_id, {f"{label}/{name}": value for name, value in numbers.items()}, {})
            log_directory(run.mlflow_run_id, graded[benchmark].path, f"verdicts/{label}")
    except Exception as error:
        raise tracking.TrackingUnavailable(
            f"MLflow does not take the results: {tracking.reason(error)} They are kept; the same run again delivers "
            "them.") from error
    show_link("evaluation", run.experiment_id, run.mlflow_run_id, get_run_logger())
    show_table(
        "scores", [{"benchmark": benchmark, **numbers} for benchmark, numbers in scores.items()],
        f"{run.recipe.model.path}: fractions of problems solved, 0 to 1", get_run_logger())
    return scores
