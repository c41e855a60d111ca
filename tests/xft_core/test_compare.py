"""The compare stage, run as any stage, on reports with made-up numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from xft_core.artifacts import verify
from xft_core.config import Recipe
from xft_core.errors import ArtifactError, RecipeError
from xft_core.grid import Variant, expand
from xft_core.reporting.comparison import Comparison
from xft_core.reporting.variants import interval_factor
from xft_core.stage import StageResult, run_stage
from xft_core.stages import CompareStage

GRID = ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3],[8,3]]", "upcycle.normalization=[xft,none]", "seed=[0,1]"]
EXPERTS = {2: 0, 4: 4, 8: 6}


def numbers(variant: Variant) -> tuple[float, float]:
    """Solved problems (of 40) and held-out loss: more experts help, the wrong scale hurts where it plays a part."""
    experts, seed = variant.recipe.upcycle.num_experts, variant.recipe.seed
    hurt = variant.recipe.upcycle.normalization == "none" and experts > 2
    return 18 + EXPERTS[experts] - 2 * hurt + seed, 0.55 - 0.001 * EXPERTS[experts] + 0.004 * hurt + 0.0005 * seed


def write_report(directory: Path, variant: Variant, solved: float, nll: float, benchmarks: tuple[str, ...] = ("HumanEval",),
                 with_sft: bool = True) -> Path:
    def pass_at_1(tests: str, solved: float, error: float) -> dict[str, Any]:
        rate = {"value": solved / 40, "standard_error": error, "low": solved / 40 - 0.1, "high": solved / 40 + 0.1}
        return {"tests": tests, "k": 1, "rate": rate}

    def row(model: str, solved: float, nll: float) -> dict[str, Any]:
        return {
            "model": model, "name": model, "held_out_nll": nll, "parameters_total": 100, "parameters_active": 100,
            "measures": [], "scores": [{
                "benchmark": benchmark, "language": None, "extended_tests": True, "problems": 40, "samples": 40,
                "pass_at_k": [pass_at_1("base", solved + 1, 0.07), pass_at_1("plus", solved, 0.08)], "groups": [],
                "truncated": 0, "infrastructure_errors": 0} for benchmark in benchmarks]}

    seed = variant.recipe.seed
    rows = [row("base", 8, 0.9), *([row("sft", 18 + seed, 0.552)] if with_sft else []), row("moe", solved + 1, nll - 0.001),
            row("merged", solved, nll)]
    comparison = Comparison.model_validate({
        "recipe": "demo", "seed": seed, "benchmarks": list(benchmarks), "skipped": {}, "rows": rows, "multilingual": [],
        "differences": [], "training_compute_ratio": None, "mixing": None, "routing": [], "went_wrong": {}, "data": {},
        "decontamination": None})
    directory.mkdir(parents=True)
    content = comparison.model_dump() | {"warnings": ["none of the stage's business"]}
    (directory / "comparison.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def compared(root: Path, grid: list[str] = GRID, result: Callable[[Variant], tuple[float, float]] = numbers,
             without: tuple[str, ...] = (), **options: Any) -> tuple[StageResult, Path]:
    recipe = Recipe(name="demo")
    reports = {
        variant.name: write_report(root / f"report{index}", variant, *result(variant), **options)
        for index, variant in enumerate(expand(recipe, grid)) if variant.name not in without}
    config = CompareStage(output=root / "out", recipe=recipe, grid=grid, reports=reports)
    return run_stage(config), config.output


def text_of(output: Path) -> str:
    return (output / "comparison.md").read_text(encoding="utf-8")


def test_means_spreads_and_pictures(tmp_path: Path) -> None:
    result, output = compared(tmp_path)
    assert {entry.path for entry in verify(output).files} == {
        "comparison.json", "comparison.md", "plots/overview.png", "plots/by_experts_active.png", "plots/by_norm.png"}
    content = json.loads((output / "comparison.json").read_text())
    group = next(item for item in content["groups"] if item["name"] == "experts=8 active=3 norm=xft")
    assert group["seeds"] == [0, 1]
    found = group["numbers"]["merged/plus_pass_at_1/HumanEval"]
    assert found["values"] == [24 / 40, 25 / 40]
    assert found["mean"] == pytest.approx(24.5 / 40)
    assert found["spread"] == pytest.approx(2**0.5 / 2 / 40)  # sample standard deviation
    metrics = result.manifest.metrics  # those of the best group
    assert metrics["merged_plus_pass_at_1"] == pytest.approx(24.5 / 40)
    assert metrics["merged_held_out_nll"] == pytest.approx(0.54425)
    assert metrics["merged_over_sft_plus_pass_at_1"] == pytest.approx(6 / 40)
    assert (metrics["variants"], metrics["missing"], metrics["groups"]) == (12, 0, 6)
    text = text_of(output)
    assert "| experts=8 active=3 norm=xft  |     2 | 0.5443 ± 0.0004 |" in text
    for name in ("overview", "by_experts_active", "by_norm"):
        assert f"(plots/{name}.png)" in text
        height, width = imread(output / "plots" / f"{name}.png").shape[:2]
        assert 400 < height < 1500 and 600 < width < 2500


def test_it_says_what_may_be_claimed_and_what_not(tmp_path: Path) -> None:
    text = text_of(compared(tmp_path)[1])
    assert "HumanEval+, merged model: best with experts=8 active=3 norm=xft (61.3 ± 1.8 %)" in text
    # Where normalization plays a part, each of the four pairs differs by the same amount.
    assert "norm=none against norm=xft, all else equal: held-out loss 0.0040 nats higher (95 % interval" in text
    assert "over 4 pairs of runs), the same way in 4 of 4." in text
    assert "with two experts the only routed one has s = 1" in text
    assert "is not tuned (experts=2 active=2 norm=xft, experts=2 active=2 norm=none)" in text
    assert "2 seeds for each variant" in text
    assert "HumanEval has 40 problems: the standard error of one pass@1 over them is about 8.0 points" in text
    assert "The best of 6 variants is found by looking" in text


def test_a_difference_within_chance_is_not_claimed(tmp_path: Path) -> None:
    def noisy(variant: Variant) -> tuple[float, float]:
        worse = (variant.recipe.upcycle.normalization == "none") == (variant.recipe.seed % 2 == 0)
        return 20 - 3 * worse, 0.5 + 0.01 * worse

    text = text_of(compared(tmp_path, ["upcycle.normalization=[xft,none]", "seed=[0,1,2]"], noisy)[1])
    assert "no difference can be claimed" in text
    assert "the same way in" not in text


def test_one_seed_gives_numbers_without_spread_and_says_so(tmp_path: Path) -> None:
    _, output = compared(tmp_path, ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3]]"])
    text = text_of(output)
    assert "| experts=4 active=3 |     1 | 0.5460 |" in text
    assert "One run for each variant" in text
    assert "one pair cannot tell an effect from chance" in text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    missing = "experts=8 active=3 norm=none seed=1"
    result, output = compared(tmp_path, without=(missing,))
    assert result.manifest.metrics["missing"] == 1
    assert f"**Missing: `{missing}`**" in text_of(output)
    assert "| experts=8 active=3 norm=none |     1 |" in text_of(output)


def test_many_settings_are_averaged_in_plots_of_one_field(tmp_path: Path) -> None:
    grid = ["upcycle.normalization=[xft,none]", "merge.shared_expert_weight=[0.1,0.2,0.3,0.4,0.5,0.6,0.7]"]
    _, output = compared(tmp_path, grid, lambda variant: (10 + 9 * (variant.recipe.merge.shared_expert_weight or 0), 0.5))
    assert {path.name for path in (output / "plots").iterdir()} == {"overview.png", "by_norm.png", "by_lambda.png"}


def test_several_benchmarks_no_baseline_and_an_empty_value(tmp_path: Path) -> None:
    result, output = compared(
        tmp_path, ["merge.shared_expert_weight=[null,0.5]"], lambda variant: (12, 0.5), benchmarks=("HumanEval", "MBPP"),
        with_sft=False)
    assert result.manifest.metrics["merged_plus_pass_at_1_mbpp"] == 12 / 40
    text = text_of(output)
    assert "over SFT" not in text
    assert "lambda=null" in text and "MBPP+ % ↑" in text


def test_the_same_reports_give_the_same_bytes_wherever_they_are(tmp_path: Path) -> None:
    one, _ = compared(tmp_path / "one")
    other, _ = compared(tmp_path / "other")
    assert one.manifest.key == other.manifest.key
    assert one.manifest.digest == other.manifest.digest


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    variant = expand(Recipe(), GRID)[0]
    report = write_report(tmp_path / "report", variant, 1, 0.5)
    stage = CompareStage(output=tmp_path / "out", recipe=Recipe(), grid=GRID, reports={"experts=3": report})
    with pytest.raises(RecipeError, match="no variant 'experts=3'"):
        run_stage(stage)
    (report / "comparison.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"comparison\.json' cannot be read"):
        run_stage(stage.model_copy(update={"reports": {variant.name: report}}))


def test_intervals_are_students() -> None:
    assert [interval_factor(count) for count in (2, 3, 5, 31, 99)] == [12.706, 4.303, 2.776, 2.042, 2.042]
