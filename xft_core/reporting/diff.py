"""Two evaluations of one benchmark side by side, for ``python -m xft_core diff A B``."""

from pathlib import Path

from xft_core.errors import DataError
from xft_core.reporting.page import Answers, read_results, write_page
from xft_core.reporting.pass_rates import MCNEMAR, Pair, certainty, counts, p_text, pair, pass_rate, rate_text
from xft_core.reporting.tables import table
from xft_core.store.results.evaluate import EvaluationFile


def diff(first: Path, second: Path, page: Path | None = None) -> str:
    """A table, a test and lists of problems as text. With ``page``, the problems are also written there side by side, as HTML.

    Raises ArtifactError for something other than an evaluation, DataError for evaluations of different benchmarks.
    """
    results = [read_results(path) for path in (first, second)]
    benchmarks = [content.benchmark for content in results]
    if benchmarks[0].sha256 != benchmarks[1].sha256:
        raise DataError("These are evaluations of different benchmarks, or of different versions of one: " + " and ".join(
            f"{benchmark.file} (sha256 {str(benchmark.sha256)[:12]}…)" for benchmark in benchmarks)
            + ". Only answers to the same problems can be compared.")
    extended = benchmarks[0].extended_tests
    pairs = {tests: pair(*(counts(content, tests) for content in results))
             for tests in (("base", "plus") if extended else ("plus",))}
    plus = pairs["plus"]
    if plus is None:
        raise DataError("The two evaluations have no graded problem in common: there is nothing to compare.")
    if page:
        name = str(benchmarks[0].file)
        write_page(
            f"{name}: {first} and {second}", [Answers(f"A: {first}", name, first), Answers(f"B: {second}", name, second)],
            page)
    lines = [
        f"A: {first}", f"B: {second}",
        f"{benchmarks[0].file} (sha256 {str(benchmarks[0].sha256)[:12]}…), {plus.problems} problems in both",
        *_differing(results), "",
        table(
            ["pass@1 %", "A", "B", "A - B", "better A", "better B", "both", "neither", "p"],
            [_row("base and extended tests" if extended and tests == "plus" else "tests" if not extended else "base tests",
                  [counts(content, tests) for content in results], found)
             for tests, found in pairs.items() if found]),
        "", "In brackets: 95% confidence interval over the problems. p: two-sided, " + plus.test + ".",
        f"{'Base and extended tests: ' if extended else ''}{certainty(plus.p_value)}.", "",
        *(_list(name, plus, problems) for name, problems in (("A", plus.better_on), ("B", plus.worse_on)))]
    return "\n".join(lines)


def _row(label: str, of_problems: list[dict[str, tuple[int, int]]], found: Pair) -> list[str]:
    rates = [pass_rate(item, 1) for item in of_problems]
    return [label, *(rate_text(rate) if rate else "-" for rate in rates), f"{100 * found.difference:+.1f}",
            *map(str, (len(found.better_on), len(found.worse_on), found.both, found.neither)), p_text(found.p_value)]


def _list(name: str, found: Pair, problems: list[str]) -> str:
    what = f"Solved only by {name}" if found.test == MCNEMAR else f"Solved more often by {name}"
    return f"{what} ({len(problems)}): {', '.join(problems) or 'none'}"


def _differing(results: list[EvaluationFile]) -> list[str]:
    first, second = (content.conditions() for content in results)
    return [
        f"Graded under different conditions: {name} is {value} for A, {second[name]} for B."
        for name, value in first.items() if value != second[name]]
