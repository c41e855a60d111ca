"""``python -m tests.fuzz [--seconds 60] [--seed 0] [TARGET ...]``: hostile input for every reader, until the time is up.

Prints how many inputs each target got and how many it accepted. An input must be accepted or rejected with a readable
message. Otherwise the command ends with status 1, after printing the trace and the seed and number that reproduce the failure.
"""

from tests import conftest  # noqa: F401, I001  (first: no name is looked up in a network)

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz import targets  # noqa: F401  (they register themselves)
from tests.fuzz.target import TARGETS, attempt

SLOWEST_SECONDS = 20.0  # of processor time: no reader may spend longer on an input


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="only the input of this number")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # readers log each skipped item, thousands of times
    failures = 0
    names = options.targets or list(TARGETS)
    for name in names:
        failures += fuzz(name, options.seed, options.seconds / len(names), options.number)
    return 1 if failures else 0


def fuzz(name: str, seed: int, seconds: float, number: int | None = None, most: int = 10**9) -> int:
    """Feed at most ``most`` inputs to one target for ``seconds``; return the number of failures.

The time starts at the end of the first input, whose imports take longer than a thousand other inputs.
    """
    deadline, count, taken = float("inf"), 0, 0
    failed: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place:
        for index in [number] if number is not None else range(most):
            if time.monotonic() > deadline:
                break
            directory, started = Path(place) / str(index), time.process_time()
            directory.mkdir()
            try:
                taken += attempt(name, random.Random(f"{name} {seed} {index}"), directory)
                assert time.process_time() - started < SLOWEST_SECONDS, "that took too long"
            except Exception:
                lines = traceback.format_exc().splitlines()
                ours = [line for line in lines if "File " in line and ("xft_core" in line or "tasks" in line)]
                way = f"{ours[-1:]} {lines[-1][:60]}"
                if way not in failed:
                    print(*(line[:300] for line in lines[-14:]), sep="\n")
                    print(f"again: python -m tests.fuzz --seed {seed} --number {index} {name}", flush=True)
                failed[way] = failed.get(way, 0) + 1
            shutil.rmtree(directory)
            count += 1
            deadline = min(deadline, time.monotonic() + seconds)
    print(f"{name}: {count} inputs, {taken} taken, {sum(failed.values())} failed in {len(failed)} ways", flush=True)
    return sum(failed.values())


if __name__ == "__main__":
    sys.exit(main())
