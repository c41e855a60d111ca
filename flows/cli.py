"""The ``xft`` command: ``xft run RECIPE.yaml`` runs the pipeline here, ``xft compare`` runs variants of a recipe and compares
them, ``xft study`` tests a ladder of claims, ``xft evaluate`` measures any model, ``xft init`` writes a recipe, ``xft plan``
estimates what a run needs, ``xft chat`` talks to a model, ``xft fetch`` downloads benchmarks, ``xft ui`` shows the runs,
``xft store`` lists, verifies and cleans the store, ``xft relocate`` repairs a home that was moved or copied,
``xft completion`` prints a shell completion script.

Exit status: 0 done, 1 a stage failed, 2 an invalid recipe or setting, 130 interrupted, 141 the reader closed the output.
"""

import logging
import os
import sys
import threading
from argparse import Namespace
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.options import parser
from tasks.home import check_place, open_home
from tasks.settings import settings
from xft_core.errors import XftError
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.process import command, imports, interrupted_in_time, told

if TYPE_CHECKING:
    from flows.local.embedded_api import PrefectApi
    from tasks.execution.finished import FinishedRun
    from tasks.publishing.comparison import ComparisonResult
    from tasks.publishing.pipeline import PipelineResult
    from tasks.publishing.study import StudyOutcome
    from tasks.references import RunOutcome
    from xft_core.recipe.sections import Recipe

TASK_LINE = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(flow_run_name)s, %(task_run_name)s - %(message)s"
INTERRUPTED = "Interrupted. The same command continues from the finished work."
INTERRUPTED_SECONDS = 7.0  # after this, the next run tells unavailable servers what they missed
NO_PAGES = "make ui  (or: xft ui)  shows Prefect and MLflow in the browser"


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.command == "completion":
        from flows.commands import completion

        return completion.run(options)
    try:
        current = open_home(lambda line: print(line, file=sys.stderr))
        runs = {"run": _run, "compare": _compare, "study": _study, "evaluate": _evaluate, "publish": _publish}
        if options.command in (*runs, "ui"):
            check_place(current)
        if getattr(options, "recommended", False):
            options.set = _recommended(options.recipe) + options.set
        if options.command in runs:
            with interrupted_in_time(INTERRUPTED_SECONDS, INTERRUPTED) if arguments is None else nullcontext():
                return runs[options.command](options)
        if options.command == "ui":
            from flows.local.ui import serve

            return serve(options.prefect_port, options.mlflow_port, options.host, options.public_address)
        if options.command == "relocate":
            from flows.commands import relocate

            return relocate.run(current)
        with imports():
            command_module = import_module(f"flows.commands.{options.command}")
        status: int = command_module.run(options)
        return status
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.MISTAKE
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return ExitCode.MISTAKE
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return ExitCode.INTERRUPTED


def _recommended(recipe: Path) -> list[str]:
    from xft_core.recipe.recommended import recommended

    settings = recommended(recipe)
    print(f"Recommended: {', '.join(settings)}")
    return settings


def _run(options: Namespace) -> int:
    with imports():
        from tasks.execution.finished import finished_run
        from xft_core.recipe.load import load_recipe

        recipe = load_recipe(options.recipe, options.set)
        if not options.again and (finished := finished_run(recipe)):
            return _show_finished(finished)
        api = _start_prefect()
        prefect = _import_in_background("flows.pipeline")
        from tasks.preflight import check_fit, check_inputs
        from tasks.references import base_model

        check_inputs(recipe)
        check_fit(recipe, base_model(recipe))
        _finish_starting(api, prefect)
        from flows.pipeline import pipeline
    with api.run_settings():
        state: Any = pipeline(**_fields(recipe), return_state=True)
    if state.is_completed():
        _show(state.result())
        return ExitCode.DONE
    return _failed(state.result(raise_on_failure=False), state)


def _compare(options: Namespace) -> int:
    # Several variants run at once: each line names its variant.
    os.environ.setdefault("PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT", TASK_LINE)
    with imports():
        api = _start_prefect()
        from xft_core.recipe.grid import expand
        from xft_core.recipe.load import load_recipe

        recipe = load_recipe(options.recipe, options.set)
        variants = [variant.recipe for variant in expand(recipe, options.grid)]
        prefect = _import_in_background("flows.compare")
        from tasks.preflight import check_inputs

        check_inputs(*variants)
        _finish_starting(api, prefect)
        from flows.compare import ComparisonIncomplete, compare, comparison_recipe, save_report
    fields = _fields(comparison_recipe(str(options.recipe), options.set, options.experiment))
    with api.run_settings():
        state: Any = compare(**fields, grid=options.grid, at_once=options.at_once, return_state=True)
    outcome = state.result(raise_on_failure=False)
    result: ComparisonResult | None = outcome.result if isinstance(outcome, ComparisonIncomplete) else outcome
    if not (state.is_completed() or isinstance(outcome, ComparisonIncomplete)) or result is None:
        return _failed(outcome, state)
    _show_comparison(result, save_report(result.report, options.report) if options.report else None)
    return ExitCode.DONE if state.is_completed() else _failed(outcome, state)


def _study(options: Namespace) -> int:
    os.environ.setdefault("PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT", TASK_LINE)
    with imports():
        api = _start_prefect()
        from xft_core.recipe.study import load_study
        from xft_core.recipe.study_checks import check_study

        check_study(*load_study(options.study))
        prefect = _import_in_background("flows.study")
        _finish_starting(api, prefect)
        from flows.compare import save_report
        from flows.study import StudyIncomplete, study
    with api.run_settings():
        state: Any = study(str(options.study), at_once=options.at_once, return_state=True)
    outcome = state.result(raise_on_failure=False)
    result: StudyOutcome | None = outcome.outcome if isinstance(outcome, StudyIncomplete) else outcome
    if not (state.is_completed() or isinstance(outcome, StudyIncomplete)) or result is None:
        return _failed(outcome, state)
    print("\n" + (result.report / "study.md").read_text(encoding="utf-8").split("\n## What each arm")[0] + "\n")
    written = save_report(result.report, options.report, "study.md") if options.report else None
    print("done" if state.is_completed() else "done, with runs missing")
    print(f"  report   {written or result.report / 'study.md'}")
    print(f"  record   MLflow run {result.mlflow_run_id} in {settings().tracking_shown}")
    print(f"  look     {result.page or NO_PAGES}")
    return ExitCode.DONE if state.is_completed() else _failed(outcome, state)


def _evaluate(options: Namespace) -> int:
    with imports():
        api = _start_prefect()
        from xft_core.recipe.load import parse
        from xft_core.recipe.sections import Recipe

        if not options.benchmark and not options.held_out:
            raise XftError("There is nothing to measure. Give --benchmark, --held-out, or both.")
        given = {"experiment": "xft-evaluate", "model": {"path": options.model},
                 "evaluate": {"benchmarks": options.benchmark, "held_out_data": options.held_out}}
        recipe = parse(Recipe, given, options.set, where="The evaluation")
        prefect = _import_in_background("flows.evaluate")
        from tasks.preflight import check_inputs
        from xft_core.recipe.steps import evaluation_steps

        check_inputs(recipe, steps=evaluation_steps)
        _finish_starting(api, prefect)
        from flows.evaluate import evaluate_model
        from xft_core.reporting.tables import table
    chosen = {name: getattr(recipe, name) for name in ("model", "seed", "experiment", "generate", "evaluate")}
    with api.run_settings():
        state: Any = evaluate_model(**chosen, return_state=True)
    if not state.is_completed():
        return _failed(state.result(raise_on_failure=False), state)
    rows = [[measured, name, f"{value:.4f}".rstrip("0").rstrip(".")] for measured, numbers in state.result().items()
            for name, value in numbers.items()]
    print("\n" + table(["measured on", "number", "value"], rows) + "\n\ndone")
    print(f"  record   experiment {recipe.experiment!r} in {settings().tracking_shown}")
    return ExitCode.DONE


def _publish(options: Namespace) -> int:
    with imports():
        api = _start_prefect()
        prefect = _import_in_background("flows.publish")
        _finish_starting(api, prefect)
        from flows.publish import publish
    given = {name: getattr(options, name)
             for name in ("model", "hub", "public", "token_block", "s3", "directory", "licence", "data_licence")}
    with api.run_settings():
        state: Any = publish(**given, return_state=True)
    if not state.is_completed():
        return _failed(state.result(raise_on_failure=False), state)
    print("\ndone: fetched again, with the same files, logits and tokens")
    for kind, place in state.result().items():
        print(f"  {kind:11} {place}")
    return ExitCode.DONE


def _start_prefect() -> "PrefectApi":
    """Start Prefect's server, which takes longest, before the recipe is read. An error in the recipe ends the server again."""
    from flows.local.embedded_api import use_prefect_api

    logging.captureWarnings(True)  # warnings of libraries are for developers, not for users who run a recipe
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    return use_prefect_api(settings().home)


def _finish_starting(api: "PrefectApi", prefect: threading.Thread) -> None:
    """Wait for the import of Prefect, for MLflow and its tables, and for Prefect's server. Raises XftError if that server does
    not start."""
    _print_pages(os.environ["PREFECT_API_URL"])
    prefect.join()
    _open_tracking()
    api.wait()


def _print_pages(api: str) -> None:
    from flows.local.addresses import pages

    for name, address in pages(settings().home, api).items():
        print(f"  {name:8} {address}", flush=True)


def _open_tracking() -> None:
    from tasks.tracking.client import client

    with suppress(Exception):  # opening the run reports it, with the reason
        client()


def _import_in_background(module: str) -> threading.Thread:
    """Import ``module`` in a thread. If that fails, the later import of it fails too and says why."""
    def attempt() -> None:
        with suppress(Exception):
            import_module(module)

    thread = threading.Thread(target=attempt, daemon=True)  # an error in the recipe does not wait for it
    thread.start()
    return thread


def _fields(recipe: "Recipe") -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in type(recipe).model_fields}


def _failed(error: Any, state: Any) -> int:
    print(f"\nerror: {error if isinstance(error, XftError) else state.message}", file=sys.stderr)
    return ExitCode.FAILED


def _show(result: "PipelineResult") -> None:
    _show_outcome(result, result.reused_stages, result.mlflow_page)


def _show_finished(finished: "FinishedRun") -> int:
    from flows.local.addresses import running_api, running_mlflow
    from tasks.mlflow_pages import run_page

    _print_pages(running_api(settings().home) or "")
    outcome, ui = finished.outcome, settings().mlflow_ui or running_mlflow(settings().home)
    page = run_page(ui, finished.run_experiment_id, outcome.mlflow_run_id) if ui else None
    _show_outcome(outcome, outcome.stages, page)
    print(f"Nothing to do: the run of {finished.ended} produced this and is its record. To record a new run: --again")
    return ExitCode.DONE


def _show_outcome(outcome: "RunOutcome", reused_stages: int, page: str | None) -> None:
    _print_report(outcome.report, "Warnings")
    reused = f" ({reused_stages} of {outcome.stages} stages reused)" if reused_stages else ""
    print(f"done{reused}")
    print(f"  report   {outcome.report / 'comparison.md'}")
    print(f"  model    {outcome.merged_model}")
    print(f"  record   MLflow run {outcome.mlflow_run_id} in {settings().tracking_shown}")
    if outcome.registered:
        print(f"  registry {outcome.registered}")
    print(f"  look     {page or NO_PAGES}")


def _show_comparison(result: "ComparisonResult", written: Path | None) -> None:
    _print_report(result.report, "What it says", "What may be claimed")
    reused = f" ({result.reused_stages} of {result.stages} stages reused)" if result.reused_stages else ""
    print(f"done: {result.variants} variants{reused}")
    print(f"  report   {written or result.report / 'comparison.md'}")
    print(f"  record   MLflow run {result.mlflow_run_id} in {settings().tracking_shown}")
    print(f"  look     {result.charts_page or NO_PAGES}")


def _print_report(report: Path, *wanted: str) -> None:
    """Print the text above the first section of comparison.md, and the sections ``wanted``."""
    first, *sections = (report / "comparison.md").read_text(encoding="utf-8").split("\n## ")
    shown = [first, *("## " + section for section in sections if section.startswith(wanted))]
    lines = [line for line in "\n".join(shown).splitlines() if not line.startswith("![")]
    print("\n" + "\n".join(lines).strip() + "\n")


if __name__ == "__main__":
    sys.exit(main())
