"""The report of a mixture: domains by model, regressions by name, experts by domain, one domain left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.xft_core.stages.test_report import make_artifact
from xft_core.errors import ArtifactError
from xft_core.recipe.grid import expand
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe
from xft_core.stages.configs import CompareStage, ReportStage
from xft_core.stages.run import run_stage

SOURCES = [
    {"path": "code.jsonl", "weight": 1}, {"path": "law.csv", "domain": "law", "weight": 1, "licence": "cc-by-4.0"},
    {"path": "old.jsonl", "domain": "old", "replay": True}]
ROWS = 30  # held-out rows of each source
# Nats per response token, by model and domain: law got worse, and old was forgotten.
LOSS = {"base": (1.0, 1.0, 1.0), "sft": (0.5, 1.4, 1.5), "moe": (0.5, 0.6, 0.9), "merged": (0.4, 1.2, 1.3),
        "merged_wise_0_5": (0.7, 0.9, 1.1)}


def recipe(**data: Any) -> Recipe:
    return parse(Recipe, {"name": "mixed", "data": {"sources": SOURCES, "replay": 0.1} | data, "merge": {"wise": [0.5]},
                          "evaluate": {"benchmarks": []}})


def report(output: Path, made: dict[str, Path], of: Recipe) -> None:
    run_stage(ReportStage(output=output, artifacts=made, recipe=of))


def artifacts(root: Path, shift: float = 0.0) -> dict[str, Path]:
    """Create the artifacts of a mixture that the report reads; ``shift`` is added to the merged model's loss on law."""
    places = [row % 3 for row in range(3 * ROWS)]
    noise = np.random.default_rng(0).normal(0, 0.05, 3 * ROWS)
    counts = {"rows_read": 100, "dropped": 5, "held_out": ROWS, "reserved": 0, "available": 65, "used": 65, "taken": 65,
              "taken_tokens": 900}
    last = counts | {"used": 4, "taken": 20, "taken_tokens": 90}
    made = {"prepare": make_artifact(root / "prepare", "mix_data", {
        "rows_read": 300, "dropped_empty_response": 15, "held_out_rows": 3 * ROWS, "train_rows": 150, "not_used": 61,
        "repeated_rows": 16},
        {"mixture.json": {"sources": [counts, counts, last], "held_out": places}})}
    for model, losses in LOSS.items():
        rows = [((losses[place] + noise[row] + (shift if (model, place) == ("merged", 1) else 0)) * 4, 4)
                for row, place in enumerate(places)]
        files: dict[str, Any] = {"row_losses.json": {"held_out": rows}}
        if model == "moe":
            files["source_routing.json"] = {"sources": [
                {"tokens": 100, "load": [[0.5, 0.25, 0.25]] * 2}, {"tokens": 50, "load": [[0.2, 0.4, 0.4]] * 2},
                {"tokens": 50, "load": [[0.3, 0.4, 0.3]] * 2}]}
        made[f"row_losses_{model}"] = make_artifact(root / model, "row_losses", {
            "nll": 1.0, "rows": len(rows), "training_tokens": 1.0, "training_flops": 1.0}, files)
    return made


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    report(root / "report", artifacts(root / "made"), recipe())
    return root / "report"


def test_every_domain_has_every_models_loss_with_its_interval(told: Path) -> None:
    content = json.loads((told / "comparison.json").read_text())
    assert [domain["name"] for domain in content["domains"]] == ["code.jsonl", "law", "old"]
    for place, domain in enumerate(content["domains"]):
        assert domain["rows"] == ROWS and domain["learned"] == (place < 2)
        for loss in domain["losses"]:
            assert loss["nll"] == pytest.approx(LOSS[loss["model"]][place], abs=0.05)
            low, high = loss["interval"]
            assert low < loss["nll"] < high
            if loss["model"] != "base":
                assert loss["difference"] == pytest.approx(LOSS[loss["model"]][place] - 1.0, abs=1e-6)
    titles = {measure["title"] for measure in content["rows"][-1]["measures"]}
    assert titles == {"NLL on code.jsonl", "NLL on law", "NLL on old"}


def test_negative_transfer_and_forgetting_are_named(told: Path) -> None:
    warnings = json.loads((told / "comparison.json").read_text())["warnings"]
    assert any(text.startswith("Negative transfer: SFT (dense)") and "domain law" in text for text in warnings)
    assert any(text.startswith("Forgetting: ") and "domain old, which was replayed" in text for text in warnings)
    assert not any("domain code" in text or "MoE" in text for text in warnings if "base model" in text)
    assert any("the source old.jsonl uses each row 5.0 times" in text for text in warnings)


def test_tables_add_up_and_pictures_are_there(told: Path) -> None:
    text = (told / "comparison.md").read_text()
    sums = next(line for line in text.splitlines() if line.startswith("| together "))
    assert [cell.strip() for cell in sums.split("|")[4:-1]] == ["300", "15", "90", "0", "61", "134", "150", "100.0"]
    assert "not accounted for" not in text and "merged, WiSE 0.5" in text
    for name in ("domains", "domain_routing", "trade_off"):
        assert f"plots/{name}.png" in text and (told / "plots" / f"{name}.png").stat().st_size > 5000
    card = (told / "README.md").read_text()
    assert "cc-by-4.0" in card and "`code.jsonl`, `law.csv`, `old.jsonl`" in card and "## Data" in card


def test_the_headline_numbers_have_the_domains(told: Path) -> None:
    metrics = json.loads((told / "manifest.json").read_text())["metrics"]
    assert metrics["merged_nll_on_law"] == pytest.approx(1.2, abs=0.05) and "merged_nll_on_law_low" in metrics


def test_rows_of_another_mixture_are_an_error(tmp_path: Path) -> None:
    made = artifacts(tmp_path / "made")
    made["row_losses_sft"] = make_artifact(tmp_path / "other", "row_losses", {"nll": 1.0}, {
        "row_losses.json": {"held_out": [(1.0, 2)] * 5}})
    with pytest.raises(ArtifactError, match="row_losses_sft are not those"):
        report(tmp_path / "report", made, recipe())


@pytest.mark.slow
def test_one_domain_left_out_shows_what_it_contributes(tmp_path: Path) -> None:
    grid = ["data.leave_out=[null,code.jsonl]"]
    reports = {}
    for variant, shift in zip(expand(recipe(), grid), (0.0, 0.3), strict=True):
        reports[variant.name] = tmp_path / f"report-{shift}"
        report(reports[variant.name], artifacts(tmp_path / f"made-{shift}", shift), variant.recipe)
    run_stage(CompareStage(output=tmp_path / "compare", recipe=recipe(), grid=grid, reports=reports))
    content = json.loads((tmp_path / "compare" / "comparison.json").read_text())["contributions"]
    found = {(item["left_out"], item["domain"]): item["mean"] for item in content}
    assert found == {("code.jsonl", "code.jsonl"): pytest.approx(0), ("code.jsonl", "law"): pytest.approx(0.3),
                     ("code.jsonl", "old"): pytest.approx(0)}
    text = (tmp_path / "compare" / "comparison.md").read_text()
    assert "## One domain left out" in text and "+0.3000 [+0.3000, +0.3000]" in text
