"""The ``xft`` command: ``xft run RECIPE.yaml`` runs the pipeline here, ``xft ui`` shows what there is.

Exit status: 0 done, 1 a stage failed, 2 a recipe or setting that cannot be meant, 130 interrupted.
"""

import argparse
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.settings import settings
from xft_core.errors import XftError
from xft_core.recipe import load_recipe

if TYPE_CHECKING:
    from tasks.publish import PipelineResult
    from xft_core.config import Recipe

EXIT_DONE, EXIT_FAILED, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "ui":
            from flows.ui import serve

            return serve(options.prefect_port, options.mlflow_port)
        recipe = load_recipe(options.recipe, options.set)
        return _run(recipe)
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from what is finished.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(recipe: "Recipe") -> int:
    from tasks.inputs import check_inputs

    check_inputs(recipe)
    _prepare_environment()
    # MLflow's import and its tables take seconds, and so does Prefect's embedded API: both at once.
    threading.Thread(target=_warm_up_tracking, daemon=True).start()
    from flows.pipeline import pipeline

    fields: dict[str, Any] = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    state: Any = pipeline(**fields, return_state=True)
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        print(f"\nerror: {error if isinstance(error, XftError) else state.message}", file=sys.stderr)
        return EXIT_FAILED
    _show(state.result())
    return EXIT_DONE


def _show(result: "PipelineResult") -> None:
    comparison = (result.report / "comparison.md").read_text(encoding="utf-8")
    table = [line for line in comparison.splitlines() if not line.startswith("![")]
    print("\n" + "\n".join(table).strip() + "\n")
    reused = f" ({result.reused_stages} of {result.stages} stages reused)" if result.reused_stages else ""
    print(f"done{reused}")
    print(f"  report   {result.report / 'comparison.md'}")
    print(f"  model    {result.merged_model}")
    print(f"  record   MLflow run {result.mlflow_run_id} in {settings().tracking_uri}")
    print("  look     make ui  (or: xft ui)  shows Prefect and MLflow in the browser")


def _prepare_environment() -> None:
    """A server that ``xft ui`` runs for the same home is used, so that the run is seen there; what Prefect's embedded
    API does for others than this one run (schedules, late runs, telemetry) is left out: it starts sooner."""
    from flows.ui import running_api

    if not os.environ.get("PREFECT_API_URL") and (address := running_api(settings().home)):
        os.environ["PREFECT_API_URL"] = address
    for service in ("SCHEDULER", "LATE_RUNS", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "FOREMAN", "TRIGGERS"):
        os.environ.setdefault(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
    logging.captureWarnings(True)  # libraries' warnings are for us, not for who runs a recipe
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


def _warm_up_tracking() -> None:
    from tasks import tracking

    try:
        tracking.client()
    except Exception:  # said, with its reason, when the run opens
        return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xft", description="Dense code model to Mixture-of-Experts, fine-tuned, merged back, measured.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the pipeline with a recipe; what is finished already is reused")
    run.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    run.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field")
    ui = commands.add_parser("ui", help="show runs in Prefect's and MLflow's web pages, until Ctrl-C")
    ui.add_argument("--prefect-port", type=int, default=4200)
    ui.add_argument("--mlflow-port", type=int, default=5000)
    return parser


if __name__ == "__main__":
    sys.exit(main())
