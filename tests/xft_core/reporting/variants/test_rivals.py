"""The merged model against every other one, over the seeds of a group of variants."""

from pathlib import Path
from typing import Any

import pytest

from xft_core.errors import ArtifactError
from xft_core.reporting.run.comparison import ComparisonFile, RowComparison
from xft_core.reporting.variants.rivals import rival_differences, rivals_table
from xft_core.reporting.variants.summary import Run
from xft_core.store.results.report import RunRowsFile

LOSSES = {"merged": [1.0, 2.0, 3.0], "sft": [2.0, 3.0, 4.0]}


def run(name: str, group: str = "g", seed: int = 0, held_out: str = "x") -> Run:
    return Run(name=name, group=group, seed=seed, settings={}, numbers={}, intervals={}, not_graded={}, held_out=held_out)


def told(model: str, name: str, flops: float | None, tokens: float | None) -> RowComparison:
    return RowComparison(model=model, name=name, held_out_nll=1.0, difference=None, interval=None, p_value=None,
                         training_tokens=tokens, training_flops=flops, equal_tokens=False, equal_flops=False)


def report(directory: Path, losses: dict[str, list[float]] = LOSSES, tokens: tuple[int, ...] = (1, 2, 1),
           flops: tuple[float | None, float] = (2e9, 4e9)) -> Path:
    directory.mkdir()
    RunRowsFile(tokens=list(tokens), losses=losses).write(directory)
    comparison: dict[str, Any] = {
        "recipe": "r", "seed": 0, "benchmarks": [], "skipped": {}, "rows": [], "multilingual": [], "differences": [],
        "training_compute_ratio": None, "mixing": None, "routing": [], "went_wrong": {}, "data": {}, "held_out": "x",
        "decontamination": None, "row_comparisons": [
            told("merged", "Merged", flops[1], 100.0), told("sft", "SFT", flops[0], 50.0), told("base", "Base", None, None)]}
    (directory / ComparisonFile.file_name).write_text(ComparisonFile.model_validate(comparison).text(), encoding="utf-8")
    return directory


def test_a_difference_is_per_token_and_over_the_seeds_that_have_both(tmp_path: Path) -> None:
    runs = [run("a", seed=0), run("b", seed=1)]
    reports = {"a": report(tmp_path / "a"), "b": report(tmp_path / "b", LOSSES | {"base": [9.0, 9.0, 9.0]}, flops=(1e9, 4e9))}
    sft, base = rival_differences(runs, reports)
    assert (sft.model, sft.name, sft.seeds) == ("sft", "SFT", 2) and sft.mean == pytest.approx(-3 / 4)
    assert sft.interval[0] <= sft.mean <= sft.interval[1] < 0
    assert sft.work == pytest.approx((1 / 2 + 1 / 4) / 2) and sft.tokens == pytest.approx(1 / 2)
    assert (base.model, base.seeds) == ("base", 1) and base.mean == pytest.approx((6 - 27) / 4)
    assert base.work is None and base.tokens is None  # it was not trained
    text = rivals_table([sft, base])
    assert all(part in text for part in ("-0.7500", " SFT |", " 0.38 |", "-5.2500", " - |"))


def test_runs_on_other_held_out_rows_are_left_out_and_groups_stay_apart(tmp_path: Path) -> None:
    runs = [run("a"), run("b", seed=1, held_out="y"), run("c", group="other")]
    reports = {name: report(tmp_path / name) for name in ("a", "b", "c")}
    assert [(item.group, item.seeds) for item in rival_differences(runs, reports)] == [("g", 1), ("other", 1)]


def test_reports_that_disagree_about_their_rows_are_refused(tmp_path: Path) -> None:
    reports = {"a": report(tmp_path / "a"), "b": report(tmp_path / "b", tokens=(1, 2, 2))}
    with pytest.raises(ArtifactError, match="a, b are of different held-out rows"):
        rival_differences([run("a"), run("b", seed=1)], reports)


def test_a_report_without_losses_by_row_has_no_rivals(tmp_path: Path) -> None:
    reports = {"a": report(tmp_path / "a")}
    (reports["a"] / RunRowsFile.file_name).unlink()
    assert rival_differences([run("a")], reports) == []
