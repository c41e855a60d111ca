"""The claims on the page of studies are those that its raw losses give."""

import re
from pathlib import Path

import pytest

from performance.study.verdicts import result_of
from xft_core.recipe.study import load_study
from xft_core.reporting.study.markdown import p_value_text

ROOT = Path(__file__).parents[3]
STUDIES = ROOT / "deployments" / "studies"
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
SECTIONS = {
    "demo": "### Result", "rates": "### Result of own rates", "ensembles": "### Result of the ensembles",
    "tickets": "### Result of the tickets", "options": "### Result of the options", "mixing": "### Result of mixing",
    "distances": "### Result of distances", "starts": "### Result of starts", "few_pairs": "### Result of real functions",
    "equal_work": "### Result of equal work", "sparse_longer": "### Result of sparse experts for longer",
    "sparse_kinds": "### Result of the kinds",
    "smollm2": "### Result of SmolLM2", "smollm2_1500": "### Result of 1,500 rows"}
FAST = {"smollm2", "smollm2_1500", "tickets"}
INTERVAL = re.compile(r"[+-]?[\d.]+ to [+-]?[\d.]+")


def on_the_page(heading: str) -> dict[int, list[str]]:
    """Difference, interval, p-value and verdict of each claim in the table below a heading."""
    section = PAGE.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    claims = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        for place, cell in enumerate(cells):
            if INTERVAL.fullmatch(cell):
                claims[int(cells[1].split(".")[0])] = cells[place - 1:place + 3]
    return claims


def test_every_study_with_losses_is_on_the_page() -> None:
    assert {path.name.removesuffix(".losses.json") for path in STUDIES.glob("*.losses.json")} == set(SECTIONS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in SECTIONS])
def test_the_claims_on_the_page_are_those_of_the_losses(name: str) -> None:
    study, _ = load_study(STUDIES / f"{name}.yaml")
    assert len(on_the_page(SECTIONS[name])) >= len(study.ladder) - 1, "one claim of SmolLM2's study was not tested"
    result = result_of(study, STUDIES / f"{name}.losses.json")
    for number, (difference, interval, p_value, verdict) in on_the_page(SECTIONS[name]).items():
        rung = result.ladder[number - 1]
        assert rung.difference is not None and rung.low is not None and rung.high is not None
        found = [round(value, 4) for value in (rung.difference, rung.low, rung.high)]
        assert [float(difference), *map(float, interval.split(" to "))] == found, number
        assert (p_value, verdict) == (p_value_text(rung.corrected), rung.verdict), number
