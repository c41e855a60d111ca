"""What a domain contributes is the difference between runs with and without it, over the rows of each measured domain."""

from pathlib import Path
from typing import Any

import pytest

from xft_core.reporting.variants.contributions import FIELD, contributions, contributions_section
from xft_core.reporting.variants.summary import Run
from xft_core.store.results.report import RunRowsFile

TOKENS, DOMAINS = [2, 4, 2], ["code", "maths", "code"]
WITHOUT_CODE, WITH_ALL = [3.0, 4.0, 3.0], [1.0, 5.0, 1.0]


def run(name: str, left_out: str | None, seed: int = 0, **others: Any) -> Run:
    return Run(name=name, group=name, seed=seed, settings={FIELD: left_out, "seed": seed} | others, numbers={}, intervals={},
               not_graded={}, held_out="x")


def report(directory: Path, losses: list[float], tokens: list[int] = TOKENS, domains: list[str] = DOMAINS) -> Path:
    directory.mkdir()
    RunRowsFile(tokens=tokens, losses={"merged": losses}, domains=domains).write(directory)
    return directory


def test_a_domain_that_helps_one_and_harms_another(tmp_path: Path) -> None:
    runs = [run(f"all {seed}", None, seed) for seed in (0, 1)] + [run(f"less {seed}", "code", seed) for seed in (0, 1)]
    reports = {item.name: report(tmp_path / item.name, WITH_ALL if item.settings[FIELD] is None else WITHOUT_CODE)
               for item in runs}
    code, maths = contributions(runs, reports)
    assert (code.left_out, code.domain, code.seeds, code.settings) == ("code", "code", 2, "")
    assert code.mean == pytest.approx((6.0 - 2.0) / 4) and maths.mean == pytest.approx((4.0 - 5.0) / 4)
    assert code.interval[0] <= code.mean <= code.interval[1]
    text = contributions_section([code, maths])
    assert "without code" in text and "+1.0000" in text and "-0.2500" in text


def test_runs_are_paired_by_seed_and_by_all_other_settings(tmp_path: Path) -> None:
    runs = [run("all", None, rate=1), run("less", "code", rate=1), run("of another rate", "code", rate=2),
            run("of another seed", "code", seed=5, rate=1)]
    reports = {item.name: report(tmp_path / item.name, WITH_ALL if item.name == "all" else WITHOUT_CODE) for item in runs}
    found = contributions(runs, reports)
    assert {(item.settings, item.seeds) for item in found} == {("rate=1", 1)}
    assert "### rate=1" in contributions_section(found)


@pytest.mark.parametrize("other", [{"tokens": [2, 4, 3]}, {"domains": ["code", "maths", "maths"]}])
def test_runs_on_other_rows_are_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    runs = [run("all", None), run("less", "code")]
    reports = {"all": report(tmp_path / "all", WITH_ALL), "less": report(tmp_path / "less", WITHOUT_CODE, **other)}
    assert contributions(runs, reports) == []


def test_a_comparison_of_anything_else_has_none(tmp_path: Path) -> None:
    other = Run(name="a", group="a", seed=0, settings={"seed": 0}, numbers={}, intervals={}, not_graded={}, held_out="x")
    assert contributions([other], {"a": report(tmp_path / "a", WITH_ALL)}) == []
