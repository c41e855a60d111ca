"""A study: arms at several seeds, each with its own tuned settings, and a ladder of claims. See xft_core/recipe/study.py.

    runs that choose settings ─ choice on reserved rows ─ reported runs ─ study (ladder, table, plots) ─ publish

Every run is a pipeline run whose stages the store keeps. Repeating the study, on any day or machine with the same store,
reuses finished stages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.options import RUNS_AT_ONCE
from flows.pipeline import raise_for_failures
from flows.variant_runs import run_by_deployment, run_here
from tasks.execution import pipeline_run
from tasks.preflight import check_inputs
from tasks.publishing import variant_results
from tasks.publishing.study import StudyOutcome, publish_study
from tasks.references import PipelineRun
from tasks.stages import submit
from xft_core.errors import XftError
from xft_core.recipe.grid import Variant
from xft_core.recipe.shared_trainings import shared_by_arms
from xft_core.recipe.steps import study_step
from xft_core.recipe.study import load_study, reported_runs, tuning_runs
from xft_core.recipe.study_checks import check_study
from xft_core.reporting.study.ladder import chosen_settings
from xft_core.reporting.study.reports import tuned


class StudyIncomplete(XftError):
    """Some runs of a study failed. ``outcome`` is the outcome of the others."""

    def __init__(self, message: str, outcome: StudyOutcome | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome


def run_name() -> str:
    """Name a run after its study."""
    try:
        return load_study(Path(str(flow_run.parameters["study_file"])))[0].name
    except XftError:  # the run itself reports the error
        return "refused"


@flow(name="study", persist_result=False, flow_run_name=run_name)
def study(
    study_file: str,
    run_in: Literal["this_process", "deployment"] = "this_process",
    at_once: Annotated[int, Field(ge=1, le=16)] = RUNS_AT_ONCE,
) -> StudyOutcome:
    """Test a ladder of claims: arms at several seeds, each with its own best settings, on rows that no choice was based on.

    Repeating a study reuses finished stages. If a run fails, the others are kept.

    Args:
        study_file: The study's file (YAML), relative to the code, for example deployments/studies/demo.yaml.
        run_in: this_process runs them here; deployment starts them as runs of pipeline/pipeline, which other workers and
            machines can pick up.
        at_once: Number of runs at once in this process. Heavy stages share the machine's compute slots anyway.
    """
    config, recipe = load_study(Path(study_file))
    check_study(config, recipe)
    choosing, _ = tuning_runs(config, recipe)
    expected, runs = reported_runs(config, recipe)
    check_inputs(*(variant.recipe for variant in [*choosing, *expected]))
    logger = get_run_logger()
    for sentence in shared_by_arms(config, runs, expected):
        logger.warning(sentence)

    def carry_out(run: PipelineRun, variants: list[Variant], known: dict[str, Path]) -> tuple[dict[str, Path], dict[str, str]]:
        """Return the reports of the runs that have one, by name, and the reasons why the others failed."""
        wanted = [variant for variant in variants if variant.name not in known]
        start: Callable[[list[Variant]], dict[str, str]] = (
            run_by_deployment if run_in == "deployment" else lambda items: run_here(items, at_once))
        failed = start(wanted) if wanted else {}
        found = {name: item.report for name, item in variant_results.collect(run).items()}
        failed |= {variant.name: "its results are not in MLflow" for variant in wanted
                   if variant.name not in found and variant.name not in failed}
        return known | {name: report for name, report in found.items() if name not in failed}, failed

    with pipeline_run.opened(recipe, kind="comparison") as run:
        logger.info("%s: %d runs to choose settings", config.name, len(choosing))
        reports, failures = carry_out(run, choosing, {})
        chosen = chosen_settings(tuned(config, recipe, reports))
        for arm in config.arms:
            if arm in chosen:
                logger.info("%s takes %s", arm, config.choices(arm)[chosen[arm]] or "its settings")
            else:
                logger.error("%s is left out: all of its settings failed", arm)
        variants, _ = reported_runs(config, recipe, chosen)
        logger.info("%s: %d reported runs", config.name, len(variants))
        reports, failed = carry_out(run, variants, reports)
        failures |= failed
        step = study_step(config, recipe, reports, failures)
        futures = submit(run, [step], base="")
        raise_for_failures(run, futures)
        made: Any = futures[step.role]
        outcome: StudyOutcome = publish_study.submit(run, made, failures).result()
        if failures:
            raise StudyIncomplete(
                f"{len(failures)} runs failed; the report omits them. To continue, start the same study again. First failure: "
                f"{next(iter(failures))}: {next(iter(failures.values()))}", outcome)
        return outcome
