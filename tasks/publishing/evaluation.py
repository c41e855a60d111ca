"""Publish the results of an evaluation: metrics and answers in MLflow's parent run, and a table in Prefect."""


from prefect import get_run_logger, task

from tasks.execution.delivery import deliver_rest, insist
from tasks.prefect_page import show_link, show_table
from tasks.publishing.headline import plain
from tasks.references import ArtifactRef, PipelineRun
from tasks.retry import PUBLISH_TASK
from tasks.stopping import stop_event
from tasks.tracking import model_source, runs
from tasks.tracking.client import explained, scalars
from tasks.tracking.files import log_directory
from xft_core.files.temporary import temporary_directory
from xft_core.recipe.labels import flat_names
from xft_core.recipe.steps import FACTS, evaluation_steps
from xft_core.reporting.page import PAGE, Answers, write_page
from xft_core.reporting.run.evidence import measured_labels

BENCHMARK_STAGES = ("generate", "evaluate")
Scores = dict[str, dict[str, float]]


@task(**PUBLISH_TASK)
def publish_scores(run: PipelineRun, artifacts: dict[str, ArtifactRef]) -> Scores:
    """Show pass@k of every benchmark, every answer with its verdict, and all other measurements. Returns the metrics by
    measurement. ``artifacts``: every step's, by role."""
    labels = _labels(run)
    answered, graded = (
        {labels[role]: item for role, item in artifacts.items() if item.stage == stage} for stage in BENCHMARK_STAGES)
    measured = {labels[role]: item for role, item in artifacts.items() if item.stage not in BENCHMARK_STAGES}
    assert not graded.keys() & measured.keys()  # all labels are unique
    scores = {name: scalars(item.metrics) for name, item in (graded | measured).items()}
    names = flat_names(scores)
    logger, stop = get_run_logger(), stop_event(run.flow_run_id)
    deliver_rest(run, artifacts.values(), stop, logger)

    def to_mlflow() -> None:
        with explained():
            for label, numbers in scores.items():
                runs.log_summary(
                    run.mlflow_run_id, {f"{names[label]}/{plain(name)}": value for name, value in numbers.items()}, {})
            if model_source.is_address(address := run.recipe.model.path):
                part = model_source.resolve(address).model
                graded_numbers, others = ({label: scores[label] for label in group} for group in (graded, measured))
                runs.log_summary(run.mlflow_run_id, as_in_a_pipeline(part, graded_numbers, others, names), {})
            for role, item in artifacts.items():
                facts = FACTS[item.stage]
                if facts.shown:
                    place = f"{facts.shown.partition('/')[0]}/{names[labels[role]]}"
                    log_directory(run.mlflow_run_id, item.path, place, facts.suffixes)
            _log_page(run, answered, graded)

    insist(to_mlflow, stop, logger)
    show_link("evaluation", run.experiment_id, run.mlflow_run_id, logger)
    show_table(
        run.flow_run_id, "scores", [{"benchmark": benchmark, **numbers} for benchmark, numbers in scores.items()],
        f"{run.recipe.model.path}: fractions of problems solved, 0 to 1; nats per response token", logger)
    return scores


def as_in_a_pipeline(part: str, graded: Scores, measured: Scores, names: dict[str, str]) -> dict[str, float]:
    """Return the metrics under a pipeline run's names (``merged/plus_pass_at_1``), so that MLflow shows both in one column.
    ``part``: the model's part in its pipeline; ``names``: flat names by label."""
    found: dict[str, float] = {}
    for place, (label, numbers) in enumerate(graded.items()):
        ending = f"_{names[label]}" if place else ""  # the first benchmark has the plain names
        found |= {f"{part}/{plain(name)}{ending}": value for name, value in numbers.items() if "pass_at_" in name}
    return found | {f"{part}/{names[label]}": numbers["nll"] for label, numbers in measured.items() if "nll" in numbers}


def _labels(run: PipelineRun) -> dict[str, str]:
    """Return the label of each step's metrics, by role."""
    measured = measured_labels(run.recipe.evaluate)
    of_stage = {**dict.fromkeys(BENCHMARK_STAGES, measured.benchmarks), "nll": measured.held_out_data,
                "lm_eval": measured.lm_eval_tasks}
    return {
        step.role: of_stage[step.stage][step.index] if step.stage in of_stage and step.index is not None else step.role
        for step in evaluation_steps(run.recipe)}


def _log_page(run: PipelineRun, answered: dict[str, ArtifactRef], graded: dict[str, ArtifactRef]) -> None:
    model = run.recipe.name
    answers = [
        Answers(model, benchmark, item.path, answered[benchmark].path) for benchmark, item in graded.items()]
    with temporary_directory("page") as directory:
        write_page(f"{model}: answers and verdicts", answers, directory / PAGE)
        log_directory(run.mlflow_run_id, directory, "report")
