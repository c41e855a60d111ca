"""The compare stage, run like any other stage, on reports with invented numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from xft_core.errors import ArtifactError, RecipeError
from xft_core.recipe.grid import Variant, expand
from xft_core.recipe.sections import Recipe
from xft_core.reporting.run.comparison import Comparison
from xft_core.reporting.statistics import interval_95
from xft_core.reporting.variants import plots
from xft_core.reporting.variants.summary import Run, interval_factor
from xft_core.stages.configs import CompareStage
from xft_core.stages.run import StageResult, run_stage
from xft_core.store.artifacts import verify

GRID = ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3],[8,3]]", "upcycle.normalization=[xft,none]", "seed=[0,1]"]
EXPERTS = {2: 0, 4: 4, 8: 6}


def numbers(variant: Variant) -> tuple[float, float]:
    """Return solved problems (of 40) and held-out loss: more experts help, the wrong scale hurts where it matters."""
    experts, seed = variant.recipe.upcycle.num_experts, variant.recipe.seed
    hurt = variant.recipe.upcycle.normalization == "none" and experts > 2
    return 18 + EXPERTS[experts] - 2 * hurt + seed, 0.55 - 0.001 * EXPERTS[experts] + 0.004 * hurt + 0.0005 * seed


def write_report(directory: Path, variant: Variant, solved: float, nll: float, benchmarks: tuple[str, ...] = ("HumanEval",),
                 with_sft: bool = True, not_graded: int = 0, held_out: str | None = "rows", problems: int = 40) -> Path:
    def pass_at_1(tests: str, solved: float) -> dict[str, Any]:
        low, high = interval_95([1.0] * int(solved) + [0.0] * (problems - int(solved)), problems)
        rate = {"value": solved / problems, "low": low, "high": high}
        return {"tests": tests, "k": 1, "rate": rate}

    def row(model: str, solved: float, nll: float) -> dict[str, Any]:
        return {
            "model": model, "name": model, "held_out_nll": nll, "parameters_total": 100, "parameters_active": 100,
            "measures": [], "scores": [{
                "benchmark": benchmark, "language": None, "extended_tests": True, "problems": problems,
                "samples": problems,
                "pass_at_k": [pass_at_1("base", solved + 1), pass_at_1("plus", solved)], "groups": [],
                "truncated": 0, "infrastructure_errors": not_graded} for benchmark in benchmarks]}

    seed = variant.recipe.seed
    rows = [row("base", 8, 0.9), *([row("sft", 18 + seed, 0.552)] if with_sft else []), row("moe", solved + 1, nll - 0.001),
            row("merged", solved, nll)]
    comparison = Comparison.model_validate({
        "recipe": "demo", "seed": seed, "benchmarks": list(benchmarks), "skipped": {}, "rows": rows, "multilingual": [],
        "differences": [], "training_compute_ratio": None, "mixing": None, "routing": [], "went_wrong": {}, "data": {},
        "held_out": held_out, "decontamination": None})
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
    metrics = result.manifest.metrics  # of the best group
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
    # With more than two experts, each of the four pairs differs by the same amount.
    assert ("norm=none against norm=xft, all else equal: held-out loss 0.0040 nats higher (exactly this in each of 4 pairs of "
            "runs)") in text
    assert "with two experts, the only routed one always has s = 1" in text
    assert "is not tuned (experts=2 active=2 norm=xft, experts=2 active=2 norm=none)" in text
    assert "Each variant has 2 seeds" in text
    assert "HumanEval has 40 problems: the 95 % interval of one pass@1 over them is about 29.4 points wide" in text
    assert "The best of 6 variants was picked from these results" in text


@pytest.mark.slow
def test_what_differs_in_an_idle_field_alone_is_one_experiment(tmp_path: Path) -> None:
    """With two experts normalization plays no part, so that pair does not count as a second experiment."""
    grid = ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3]]", "upcycle.normalization=[xft,none]",
            "merge.shared_expert_weight=[0.5,0.75]", "seed=[0,1]"]
    text = text_of(compared(tmp_path, [*grid[:2], grid[3]])[1])
    assert "in 4 of 6 runs and worse in 0" in text and "(2 more differ from these only in settings that play no part)" in text
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    pairs = {tuple(effect["fields"]): effect["pairs"] for effect in content["effects"]}
    assert pairs == {("upcycle.num_experts", "upcycle.num_experts_per_tok"): 4, ("upcycle.normalization",): 2}
    _, output = compared(tmp_path / "more", [grid[0], *grid[1:]])
    content = json.loads((output / "comparison.json").read_text())
    pairs = {tuple(effect["fields"]): effect["pairs"] for effect in content["effects"]}
    # Pairs for the weight: two experts with 2 seeds, four experts with 2 norms and 2 seeds.
    assert pairs[("merge.shared_expert_weight",)] == 2 + 4


def test_a_difference_within_chance_is_not_claimed(tmp_path: Path) -> None:
    def noisy(variant: Variant) -> tuple[float, float]:
        worse = (variant.recipe.upcycle.normalization == "none") == (variant.recipe.seed % 2 == 0)
        return 20 - 3 * worse, 0.5 + 0.01 * worse

    text = text_of(compared(tmp_path, ["upcycle.normalization=[xft,none]", "seed=[0,1,2]"], noisy)[1])
    assert "no difference can be claimed" in text
    assert "in the same direction in" not in text


def test_one_seed_gives_numbers_without_spread_and_says_so(tmp_path: Path) -> None:
    _, output = compared(tmp_path, ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3]]"])
    text = text_of(output)
    assert "| experts=4 active=3 |     1 | 0.5460 |" in text
    assert "Each variant has one run" in text
    assert "one pair cannot tell an effect from chance" in text


@pytest.mark.slow
def test_what_is_missing_is_said(tmp_path: Path) -> None:
    missing = "experts=8 active=3 norm=none seed=1"
    result, output = compared(tmp_path, without=(missing,))
    assert result.manifest.metrics["missing"] == 1
    assert f"**Missing: `{missing}`**" in text_of(output)
    assert "| experts=8 active=3 norm=none |     1 |" in text_of(output)


@pytest.mark.slow
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
    assert [interval_factor(count) for count in (2, 3, 5, 31, 99)] == [12.706, 4.303, 2.776, 2.042, 1.984]


def test_nothing_solved_has_the_interval_that_single_reports_have(tmp_path: Path) -> None:
    _, output = compared(tmp_path, ["upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3]]"], lambda _: (0, 0.5))
    runs = text_of(output).split("## Every run")[1]
    assert runs.count("| 0.0 [0.0, 8.8]") == 2 and "±" not in runs  # Wilson, 0 of 40


def test_nothing_solved_with_any_seed_is_no_spread_of_zero(tmp_path: Path) -> None:
    text = text_of(compared(tmp_path, ["seed=[0,1,2]"], lambda _: (0, 0.5))[1])
    assert " 0.0 |" in text.split("## Every run")[0] and " 0.0 ± 0.0 |" not in text.split("## Every run")[0]
    assert text.count("| 0.0 [0.0, 8.8]") == 3


def test_the_base_model_is_one_measurement_for_all_seeds(tmp_path: Path) -> None:
    _, output = compared(tmp_path, ["seed=[0,1]"])
    base = json.loads((output / "comparison.json").read_text())["groups"][0]["numbers"]["base/plus_pass_at_1/HumanEval"]
    assert base == {"mean": 0.2, "spread": None, "values": [0.2]}
    assert "20.0 ± 0.0" not in text_of(output)


def test_an_answer_without_a_verdict_stands_beside_the_number(tmp_path: Path) -> None:
    text = text_of(compared(tmp_path, ["seed=[0,1]"], not_graded=3)[1])
    assert "| 60.0 [44.6, 73.7] (3 not graded)" in text.split("## Every run")[1]
    assert "61.3 ± 1.8 (6 not graded)" in text.split("## All models")[0] and "20.0 (3 not graded)" in text
    assert "seed=0: some answers have no verdict and are not counted: 3 of base on HumanEval, 3 of sft" in text


def test_numbers_of_other_problems_and_other_rows_are_not_put_together(tmp_path: Path) -> None:
    recipe, grid = Recipe(name="demo"), ["evaluate.max_problems=[20,40]"]
    variants = expand(recipe, grid)
    reports = {variant.name: write_report(tmp_path / f"{index}", variant, 10, 0.5, problems=size, held_out=f"rows {index}")
               for index, (variant, size) in enumerate(zip(variants, (20, 40), strict=True))}
    config = CompareStage(output=tmp_path / "out", recipe=recipe, grid=grid, reports=reports)
    metrics = run_stage(config).manifest.metrics
    content = json.loads((config.output / "comparison.json").read_text())
    assert content["problems"] == {"HumanEval (20 problems)": 20, "HumanEval (40 problems)": 40}
    assert [effect["number"] for effect in content["effects"]] == ["merged/held_out_nll"]
    text = text_of(config.output)
    assert "Not all variants answered the same number of problems" in text and "different held-out rows" in text
    assert metrics["merged_plus_pass_at_1"] == 0.5


def test_a_number_that_one_seed_lacks_is_the_mean_of_the_others_and_says_so(tmp_path: Path) -> None:
    recipe, grid = Recipe(name="demo"), ["seed=[0,1,2]"]
    reports = {variant.name: write_report(tmp_path / f"{index}", variant, 10 + index, 0.5,
                                          benchmarks=("HumanEval", "MBPP") if index else ("HumanEval",))
               for index, variant in enumerate(expand(recipe, grid))}
    config = CompareStage(output=tmp_path / "out", recipe=recipe, grid=grid, reports=reports)
    assert run_stage(config).manifest.metrics["merged_plus_pass_at_1_mbpp"] == pytest.approx(11.5 / 40)
    assert "merged/plus_pass_at_1/MBPP (2)" in text_of(config.output)


def test_all_that_share_the_best_place_are_named(tmp_path: Path) -> None:
    grid = ["merge.shared_expert_weight=[0.5,0.6,0.7]"]
    _, output = compared(tmp_path, grid, lambda variant: (12 if variant.recipe.merge.shared_expert_weight == 0.7 else 20, 0.5))
    assert ("HumanEval+, merged model: best with lambda=0.5 (50.0 %) and lambda=0.6 (50.0 %), worst with lambda=0.7 (30.0 %)."
            in text_of(output))


def test_a_difference_that_is_not_zero_does_not_read_as_zero(tmp_path: Path) -> None:
    _, output = compared(
        tmp_path, ["upcycle.normalization=[xft,none]"],
        lambda variant: (20, 0.5 + 2e-6 * (variant.recipe.upcycle.normalization == "none")))
    assert "held-out loss 2e-06 nats higher" in text_of(output) and "0.0000 nats" not in text_of(output)


def test_a_mean_over_other_settings_is_one_over_the_same_at_every_step() -> None:
    def run(norm: str, weight: float, loss: float) -> Run:
        settings = {"norm": norm, "lambda": weight}
        return Run(name="", group="", seed=0, settings=settings, numbers={"merged/held_out_nll": loss}, intervals={},
                   not_graded={}, held_out=None)

    runs = [run("xft", 0.1, 1.0), run("xft", 0.2, 2.0), run("none", 0.2, 2.0)]
    numbers = plots.numbers_by_step(runs, "merged/held_out_nll", ["norm"], ["lambda", "seed"], [["xft"], ["none"]])
    assert plots.common_to_all(numbers) == {"[0.2, 0]"}


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    names = ("数据", "测试", r"a$\broken$", "x_1^{")
    _, output = compared(tmp_path, ["seed=[0,1]"], benchmarks=names)
    assert (output / "plots" / "overview.png").is_file()
