"""Measure start times: the commands' help and imports, a stage, and repeating a finished demo run.

    python -m performance.starting [--repeats 5]

The recipe is the demo with only a few steps and problems, which does not change what a second run does. "Stage start" is the
time from starting its sft stage to the first line, the held-out loss of a few rows. It is measured as a fork of a ready server,
which is how all but the first stage of a flow start (its CPU seconds are the server's and not counted), and as a fresh process.
"""

import argparse
import os
import sys
import tempfile
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from performance.side_by_side import print_heading, print_table, run_command, side_by_side
from tasks.execution import child_process, fork_server
from tasks.stopping import RunStopped
from xft_core.recipe.load import load_recipe
from xft_core.runtime.exit_codes import ExitCode
from xft_core.stages.configs import SftStage

DEMO = Path(__file__).parents[1] / "deployments" / "recipes" / "demo.yaml"
CUT_DOWN = [
    "data.max_rows=60", "data.held_out_rows=8", "sft.max_steps=2", "merge.max_steps=2", "evaluate.max_problems=2",
    "generate.max_new_tokens=16", "evaluate.sandbox=unsafe"]
TARGETS = {
    "python -m xft_core --help": 0.5, "import flows.pipeline": 2.5, "mistake in a recipe told": 5.0, "stage start, forked": 1.0,
    "stage start, fresh": "", "finished demo again": 4.0, "finished demo recorded again": ""}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print_heading("Starting")
    with tempfile.TemporaryDirectory() as home:
        os.environ["XFT_HOME"] = home
        recipe = [sys.executable, "-m", "flows.cli", "run", str(DEMO), *(word for item in CUT_DOWN for word in ("--set", item))]
        run_command(recipe)
        stage = partial(start_stage, Path(home))
        taken = side_by_side({
            "python -m xft_core --help": partial(run_command, [sys.executable, "-m", "xft_core", "--help"]),
            "import flows.pipeline": partial(run_command, [sys.executable, "-c", "import flows.pipeline"]),
            "mistake in a recipe told": partial(
                run_command, [*recipe, "--set", "model.path=/no/such/model"], status=ExitCode.MISTAKE),
            "stage start, forked": stage,
            "stage start, fresh": partial(stage, fresh=True),
            "finished demo again": partial(run_command, recipe),
            "finished demo recorded again": partial(run_command, [*recipe, "--again"])}, options.repeats)
    print_table(
        ["what", "seconds", "CPU seconds", "target"],
        [[name, item.seconds, item.cpu_seconds, TARGETS[name]] for name, item in taken.items()])


def start_stage(home: Path, fresh: bool = False) -> None:
    """Start the sft stage over the data of the run in ``home``, and stop it at its first line."""
    recipe = load_recipe(DEMO, CUT_DOWN)
    data = next(path for path in (home / "artifacts" / "prepare").iterdir() if path.is_dir())
    config = SftStage(
        output=home / "started", model="demo:model", data=data, seed=recipe.seed, sft=recipe.sft, checks=recipe.checks)
    stop = threading.Event()
    start = fork_server.start
    try:
        if fresh:
            fork_server.start = lambda *_: None
        with suppress(RunStopped):
            child_process.run_in_child(config, lambda _: stop.set(), stop, threads=1)
    finally:
        fork_server.start = start


if __name__ == "__main__":
    main()
