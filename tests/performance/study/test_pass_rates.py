"""pass@1 of models from their verdicts, and the figures on the page of studies that come from them."""

import json
import re
from pathlib import Path

import pytest

from performance.study.pass_rates import add, compared, main, read
from xft_core.reporting.pass_rates import p_text, points_text, rate_text

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
OF_STUDY = ROOT / "deployments" / "studies" / "smollm2_1500.pass_rates.json"


def results(path: Path, verdicts: dict[str, list[tuple[str, str]]]) -> Path:
    """Write a results.json with the (base, plus) verdicts of every problem's answers."""
    problems = [{"task_id": task_id, "samples": [{"base": base, "plus": plus} for base, plus in answers]}
                for task_id, answers in verdicts.items()]
    path.write_text(json.dumps({"benchmark": {"file": "bench.jsonl"}, "problems": problems}), encoding="utf-8")
    return path


def test_models_are_compared_problem_by_problem(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, right, wrong, half = tmp_path / "rates.json", ("pass", "pass"), ("fail", "fail"), ("pass", "fail")
    first = results(tmp_path / "first.json", {"a": [right, wrong], "b": [wrong, wrong], "c": [half, half]})
    second = results(tmp_path / "second.json", {"a": [right, right], "b": [right, wrong], "c": [half, right]})
    monkeypatch.setattr("sys.argv", ["pass_rates", str(file), "--add", "sft", str(first), "--add", "merged", str(second)])
    main()
    printed = capsys.readouterr().out
    found = read(file)
    assert found["bench.jsonl, plus tests"] == {
        "sft": {"a": [1, 2], "b": [0, 2], "c": [0, 2]}, "merged": {"a": [2, 2], "b": [1, 2], "c": [1, 2]}}
    rate, change = compared(*found["bench.jsonl, base tests"].values())
    assert (rate.value, change.difference) == (pytest.approx(5 / 6), pytest.approx(1 / 3))
    assert "+33.3" in printed and "+50.0" in printed and "83.3" in printed


def test_verdicts_that_could_not_be_reached_are_not_counted(tmp_path: Path) -> None:
    add(tmp_path / "rates.json", "sft", results(tmp_path / "r.json", {
        "a": [("pass", "infrastructure_error"), ("pass", "pass")], "b": [("infrastructure_error", "infrastructure_error")]}))
    found = read(tmp_path / "rates.json")
    assert found["bench.jsonl, base tests"]["sft"] == {"a": [2, 2]}
    assert found["bench.jsonl, plus tests"]["sft"] == {"a": [1, 1]}


def test_the_rates_on_the_page_are_those_of_the_verdicts() -> None:
    section = PAGE.split("\n### Result of 1,500 rows\n", 1)[1].split("\n## ", 1)[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]]
             for line in section.splitlines() if re.match(r"\| (HumanEval|MBPP)", line)]
    expected = []
    for models in read(OF_STUDY).values():
        rates = [rate_text(compared(models["sft"], found)[0]) for found in models.values()]
        change = compared(models["sft"], models["merged"])[1]
        expected.append([*rates, points_text(change.difference), p_text(change.p_value)])
    assert len(expected) == 4 and [line[1:] for line in lines] == expected
