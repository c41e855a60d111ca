"""The end of an evaluation: its numbers and answers in MLflow's parent run, and a table in Prefect."""


from prefect import get_run_logger, task

from tasks.execution.delivery import deliver_rest, insist
from tasks.prefect_page import show_link, show_table
from tasks.references import ArtifactRef, PipelineRun
from tasks.retry import PUBLISH_TASK
from tasks.stopping import stop_event
from tasks.tracking import runs
from tasks.tracking.client import explained, scalars
from tasks.tracking.files import log_directory
from xft_core.files.temporary import temporary_directory
from xft_core.recipe.labels import flat_names
from xft_core.reporting.page import PAGE, Answers, write_page

Scores = dict[str, dict[str, float]]


@task(**PUBLISH_TASK)
def publish_scores(
    run: PipelineRun, answered: dict[str, ArtifactRef], graded: dict[str, ArtifactRef], measured: dict[str, ArtifactRef],
) -> Scores:
    """Show pass@k of every benchmark, every answer with its verdict, and what else was measured.

    ``answered`` and ``graded``: what the generate and the evaluate stage made, by the benchmark's label (see ``labels``);
    ``measured``: what nll and lm_eval did, by that of the data set or task. Returns the numbers.
    """
    assert not graded.keys() & measured.keys()  # labels are unique over all
    scores = {name: scalars(item.metrics) for name, item in (graded | measured).items()}
    names = flat_names(scores)
    logger, stop = get_run_logger(), stop_event(run.flow_run_id)
    deliver_rest(run, [*answered.values(), *graded.values(), *measured.values()], stop, logger)

    def to_mlflow() -> None:
        with explained():
            for benchmark, numbers in scores.items():
                label = names[benchmark]
                runs.log_summary(run.mlflow_run_id, {f"{label}/{name}": value for name, value in numbers.items()}, {})
                if benchmark in measured:
                    log_directory(run.mlflow_run_id, measured[benchmark].path, f"measures/{label}")
                    continue
                log_directory(run.mlflow_run_id, answered[benchmark].path, f"samples/{label}")
                log_directory(run.mlflow_run_id, graded[benchmark].path, f"verdicts/{label}")
            _log_page(run, answered, graded)

    insist(to_mlflow, stop, logger)
    show_link("evaluation", run.experiment_id, run.mlflow_run_id, logger)
    show_table(
        "scores", [{"benchmark": benchmark, **numbers} for benchmark, numbers in scores.items()],
        f"{run.recipe.model.path}: fractions of problems solved, 0 to 1; nats per response token", logger)
    return scores


def _log_page(run: PipelineRun, answered: dict[str, ArtifactRef], graded: dict[str, ArtifactRef]) -> None:
    model = run.recipe.name
    answers = [
        Answers(model, benchmark, item.path, answered[benchmark].path) for benchmark, item in graded.items()]
    with temporary_directory("page") as directory:
        write_page(f"{model}: answers and verdicts", answers, directory / PAGE)
        log_directory(run.mlflow_run_id, directory, "report")
