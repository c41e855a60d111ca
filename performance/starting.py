"""How long it takes to start: the commands' help and imports, and a finished recipe run again.

    python -m performance.starting [--repeats 5]

The recipe is the demo, cut down to a few steps and problems: what a second run does is the same.
"""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from performance.side_by_side import print_heading, print_table, run_command, side_by_side

DEMO = Path(__file__).parents[1] / "deployments" / "recipes" / "demo.yaml"
CUT_DOWN = [
    "data.max_rows=60", "data.held_out_rows=8", "sft.max_steps=2", "merge.max_steps=2", "evaluate.max_problems=2",
    "generate.max_new_tokens=16", "evaluate.sandbox=unsafe"]
TARGETS = {"python -m xft_core --help": 0.5, "import flows.pipeline": 2.5, "finished recipe again": 10.0}


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
        taken = side_by_side({
            "python -m xft_core --help": partial(run_command, [sys.executable, "-m", "xft_core", "--help"]),
            "import flows.pipeline": partial(run_command, [sys.executable, "-c", "import flows.pipeline"]),
            "finished recipe again": partial(run_command, recipe)}, options.repeats, warm_up=False)
    print_table(
        ["what", "seconds", "CPU seconds", "target"],
        [[name, item.seconds, item.cpu_seconds, TARGETS[name]] for name, item in taken.items()])


if __name__ == "__main__":
    main()
