"""Compare models on benchmarks from their verdicts: ``python -m performance.study.pass_rates FILE.json``.

Prints pass@1 of every model in FILE, and of each model minus the first. ``--add MODEL RESULTS.json`` (repeatable) first adds
the results.json of an ``evaluate`` artifact under a name. FILE holds how many answers passed and how many were graded, for each
benchmark ("base" tests and "plus" tests apart), model and problem.
"""

import argparse
import json
from pathlib import Path

from performance.side_by_side import print_table
from xft_core.reporting.pass_rates import Counts, Pair, PassRate, counts, p_text, pair, pass_rate, points_text, rate_text
from xft_core.store.results.evaluate import EvaluationFile

TESTS = ("base", "plus")


def main() -> None:
    """Add, read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--add", nargs=2, action="append", default=[], metavar=("MODEL", "RESULTS"))
    options = parser.parse_args()
    for model, results in options.add:
        add(options.file, model, Path(results))
    for benchmark, models in read(options.file).items():
        first = next(iter(models))
        lines = []
        for model, found in models.items():
            rate, change = compared(models[first], found)
            lines.append([model, rate_text(rate), len(found)] + (
                ["-", "-"] if model == first else [points_text(change.difference), p_text(change.p_value)]))
        print_table([benchmark, "pass@1, %", "problems", f"minus {first}, points", "p-value"], lines)


def read(file: Path) -> dict[str, dict[str, Counts]]:
    """Of each benchmark and model, by problem: how many answers passed, and how many were graded. A missing file is empty."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}  # type: ignore[no-any-return]


def add(file: Path, model: str, results: Path) -> None:
    """Add the verdicts in a results.json to ``file`` as those of ``model``."""
    evaluation, found = EvaluationFile.model_validate_json(results.read_text(encoding="utf-8")), read(file)
    for tests in TESTS:
        name = f"{evaluation.benchmark.file}, {tests} tests"
        found.setdefault(name, {})[model] = counts(evaluation, tests)
    file.write_text(json.dumps(found) + "\n", encoding="utf-8")


def compared(first: Counts, second: Counts) -> tuple[PassRate, Pair]:
    """pass@1 of the second, and the second minus the first."""
    rate, change = pass_rate(second, 1), pair(second, first)
    assert rate is not None and change is not None, "the models answered no common problem"
    return rate, change


if __name__ == "__main__":
    main()
