"""The ``xft`` command: ``xft run RECIPE.yaml`` runs the pipeline here, ``xft ui`` shows what there is,
``xft plan RECIPE.yaml`` what a run needs, ``xft store`` lists, verifies and cleans the store.

Exit status: 0 done, 1 a stage failed, 2 a recipe or setting that cannot be meant, 130 interrupted.
"""

import argparse
import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import plan_command, store_command
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
        if options.command == "store":
            return store_command.run(options)
        if options.command == "plan":
            return plan_command.run(options)
        recipe = load_recipe(options.recipe, options.set)
        return _run(recipe)
    except XftError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from what is finished.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(recipe: "Recipe") -> int:
    from flows.embedded_api import use_prefect_api
    from tasks.fit import check_fit
    from tasks.inputs import base_model, check_inputs

    check_inputs(recipe)
    check_fit(recipe, base_model(recipe))
    logging.captureWarnings(True)  # what libraries warn of is for us, not for who runs a recipe
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    # Three slow starts at once: Prefect's server, and here Prefect and, in a thread, MLflow with its tables.
    wait_for_api = use_prefect_api(settings().home)
    warm_up = threading.Thread(target=_warm_up_tracking, daemon=True)
    warm_up.start()
    from flows.pipeline import pipeline

    wait_for_api()
    warm_up.join()
    fields: dict[str, Any] = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    state: Any = pipeline(**fields, return_state=True)
    if state.is_completed():
        _show(state.result())
        return EXIT_DONE
    error = state.result(raise_on_failure=False)
    print(f"\nerror: {error if isinstance(error, XftError) else state.message}", file=sys.stderr)
    return EXIT_FAILED


def _show(result: "PipelineResult") -> None:
    first, *sections = (result.report / "comparison.md").read_text(encoding="utf-8").split("\n## ")
    shown = [first, *("## " + section for section in sections if section.startswith("Warnings"))]
    lines = [line for line in "\n".join(shown).splitlines() if not line.startswith("![")]
    print("\n" + "\n".join(lines).strip() + "\n")
    reused = f" ({result.reused_stages} of {result.stages} stages reused)" if result.reused_stages else ""
    print(f"done{reused}")
    print(f"  report   {result.report / 'comparison.md'}")
    print(f"  model    {result.merged_model}")
    print(f"  record   MLflow run {result.mlflow_run_id} in {settings().tracking_uri}")
    print("  look     make ui  (or: xft ui)  shows Prefect and MLflow in the browser")


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
    plan_command.add_options(commands.add_parser("plan", help="memory, disk and time of every stage; refuses what cannot fit"))
    ui = commands.add_parser("ui", help="show runs in Prefect's and MLflow's web pages, until Ctrl-C")
    ui.add_argument("--prefect-port", type=int, default=4200)
    ui.add_argument("--mlflow-port", type=int, default=5000)
    store_command.add_options(commands.add_parser("store", help="what the store holds: list, verify, drop what is unused"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
