"""The ``xft`` command: ``xft run RECIPE.yaml`` runs the pipeline here, ``xft compare`` runs variants of a recipe
and puts them side by side, ``xft study`` tests a ladder of claims, ``xft plan`` says what a run needs, ``xft ui`` shows what
there is, ``xft store`` lists, verifies and cleans the store, ``xft relocate`` puts a home right that was moved or copied.

Exit status: 0 done, 1 a stage failed, 2 an invalid recipe or setting, 130 interrupted, 141 nobody reads the output.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands import plan, relocate, store
from tasks.home import check_place, open_home
from tasks.settings import settings
from tasks.tracking.client import client
from xft_core.errors import XftError
from xft_core.recipe.load import load_recipe
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.process import command, imports, told

if TYPE_CHECKING:
    from tasks.publishing.comparison import ComparisonResult
    from tasks.publishing.pipeline import PipelineResult
    from tasks.publishing.study import StudyOutcome
    from xft_core.recipe.sections import Recipe

TASK_LINE = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(flow_run_name)s, %(task_run_name)s - %(message)s"
NO_PAGES = "make ui  (or: xft ui)  shows Prefect and MLflow in the browser"


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        current = open_home(lambda line: print(line, file=sys.stderr))
        if options.command == "relocate":
            return relocate.run(current)
        if options.command in ("run", "compare", "ui"):
            check_place(current)
        if options.command == "ui":
            from flows.local.ui import serve

            return serve(options.prefect_port, options.mlflow_port)
        if options.command == "store":
            return store.run(options)
        if options.command == "compare":
            return _compare(options)
        if options.command == "study":
            return _study(options)
        if options.command == "plan":
            return plan.run(options)
        recipe = load_recipe(options.recipe, options.set)
        return _run(recipe)
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.MISTAKE
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return ExitCode.MISTAKE
    except KeyboardInterrupt:
        print("Interrupted. The same command continues from what is finished.", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _run(recipe: "Recipe") -> int:
    from tasks.preflight import check_fit, check_inputs
    from tasks.references import base_model

    check_inputs(recipe)
    check_fit(recipe, base_model(recipe))
    with imports():
        wait_for_api = _start_services()
        from flows.pipeline import pipeline

        wait_for_api()
    state: Any = pipeline(**_fields(recipe), return_state=True)
    if state.is_completed():
        _show(state.result())
        return ExitCode.DONE
    return _failed(state.result(raise_on_failure=False), state)


def _compare(options: argparse.Namespace) -> int:
    from tasks.preflight import check_inputs
    from xft_core.recipe.grid import expand

    recipe = load_recipe(options.recipe, options.set)
    check_inputs(*(variant.recipe for variant in expand(recipe, options.grid)))
    # Several variants are at work at once: each line says whose it is.
    os.environ.setdefault("PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT", TASK_LINE)
    with imports():
        wait_for_api = _start_services()
        from flows.compare import ComparisonIncomplete, compare, comparison_recipe, save_report

        fields = _fields(comparison_recipe(str(options.recipe), options.set, options.experiment))
        wait_for_api()
    state: Any = compare(**fields, grid=options.grid, at_once=options.at_once, return_state=True)
    outcome = state.result(raise_on_failure=False)
    result: ComparisonResult | None = outcome.result if isinstance(outcome, ComparisonIncomplete) else outcome
    if not (state.is_completed() or isinstance(outcome, ComparisonIncomplete)) or result is None:
        return _failed(outcome, state)
    _show_comparison(result, save_report(result.report, options.report) if options.report else None)
    return ExitCode.DONE if state.is_completed() else _failed(outcome, state)


def _study(options: argparse.Namespace) -> int:
    from xft_core.recipe.study import load_study
    from xft_core.recipe.study_checks import check_study

    check_study(*load_study(options.study))
    os.environ.setdefault("PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT", TASK_LINE)
    with imports():
        wait_for_api = _start_services()
        from flows.compare import save_report
        from flows.study import StudyIncomplete, study

        wait_for_api()
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


def _start_services() -> Callable[[], None]:
    """Begin the three slow starts at once: Prefect's server, and here Prefect and, in a thread, MLflow with its tables.

    Returns a function that waits until they are there.
    """
    from flows.local.addresses import pages
    from flows.local.embedded_api import use_prefect_api

    logging.captureWarnings(True)  # what libraries warn of is for us, not for who runs a recipe
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    wait_for_api = use_prefect_api(settings().home)
    for name, address in pages(settings().home, os.environ["PREFECT_API_URL"]).items():
        print(f"  {name:8} {address}", flush=True)
    warm_up = threading.Thread(target=_warm_up_tracking, daemon=True)
    warm_up.start()

    def wait() -> None:
        wait_for_api()
        warm_up.join()

    return wait


def _fields(recipe: "Recipe") -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in type(recipe).model_fields}


def _failed(error: Any, state: Any) -> int:
    print(f"\nerror: {error if isinstance(error, XftError) else state.message}", file=sys.stderr)
    return ExitCode.FAILED


def _show(result: "PipelineResult") -> None:
    _print_report(result.report, "Warnings")
    reused = f" ({result.reused_stages} of {result.stages} stages reused)" if result.reused_stages else ""
    print(f"done{reused}")
    print(f"  report   {result.report / 'comparison.md'}")
    print(f"  model    {result.merged_model}")
    print(f"  record   MLflow run {result.mlflow_run_id} in {settings().tracking_shown}")
    if result.registered:
        print(f"  registry {result.registered}")
    print(f"  look     {result.mlflow_page or NO_PAGES}")


def _show_comparison(result: "ComparisonResult", written: Path | None) -> None:
    _print_report(result.report, "What it says", "What may be claimed")
    reused = f" ({result.reused_stages} of {result.stages} stages reused)" if result.reused_stages else ""
    print(f"done: {result.variants} variants{reused}")
    print(f"  report   {written or result.report / 'comparison.md'}")
    print(f"  record   MLflow run {result.mlflow_run_id} in {settings().tracking_shown}")
    print(f"  look     {result.charts_page or NO_PAGES}")


def _print_report(report: Path, *wanted: str) -> None:
    """Print what stands above the first section of comparison.md, and the sections ``wanted``."""
    first, *sections = (report / "comparison.md").read_text(encoding="utf-8").split("\n## ")
    shown = [first, *("## " + section for section in sections if section.startswith(wanted))]
    lines = [line for line in "\n".join(shown).splitlines() if not line.startswith("![")]
    print("\n" + "\n".join(lines).strip() + "\n")


def _warm_up_tracking() -> None:

    try:
        client()
    except Exception:  # said, with its reason, when the run opens
        return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xft", description="Dense code model to Mixture-of-Experts, fine-tuned, merged back, measured.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the pipeline with a recipe; what is finished already is reused")
    run.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field")
    compare = commands.add_parser(
        "compare", help="run variants of a recipe and put them side by side; what is finished already is reused")
    compare.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    compare.add_argument(
        "--grid", action="append", default=[], metavar="SECTION.FIELD=[VALUE,...]",
        help="what varies, for example seed=[0,1]; again for each field; fields that change together: a.b,a.c=[[1,2],[3,4]]")
    compare.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field")
    compare.add_argument("--report", type=Path, metavar="DIRECTORY", help="write the report with its plots there")
    compare.add_argument("--experiment", metavar="NAME", help="MLflow experiment (default: the recipe's name, -comparison)")
    compare.add_argument(
        "--at-once", type=int, default=2, choices=range(1, 17), metavar="N",
        help="variants at work at the same time, 1 to 16 (default 2)")
    study = commands.add_parser(
        "study", help="test a ladder of claims: arms at several seeds, each tuned; what is finished already is reused")
    study.add_argument("study", type=Path, metavar="STUDY.yaml")
    study.add_argument("--report", type=Path, metavar="DIRECTORY", help="write the report with its plots there")
    study.add_argument(
        "--at-once", type=int, default=2, choices=range(1, 17), metavar="N",
        help="runs at work at the same time, 1 to 16 (default 2)")
    plan.add_options(commands.add_parser("plan", help="memory, disk and time of every stage; refuses what cannot fit"))
    ui = commands.add_parser("ui", help="show runs in Prefect's and MLflow's web pages, until Ctrl-C")
    ui.add_argument("--prefect-port", type=int, default=4200)
    ui.add_argument("--mlflow-port", type=int, default=5000)
    store.add_options(commands.add_parser("store", help="what the store holds: list, verify, drop what is unused"))
    commands.add_parser("relocate", help="put a home (XFT_HOME) right that was moved or copied: its addresses lead to it again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
