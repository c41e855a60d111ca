"""A study as a real flow: runs for choosing, reported runs, the ladder; once more without any work; and with a failing run.

The recipe names no benchmark: models are compared by their held-out loss, and registered by it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.study import StudyIncomplete, study
from tasks.tracking.client import client
from tests.flows.conftest import RECIPE
from xft_core.errors import RecipeError
from xft_core.reporting.study.ladder import StudyResult
from xft_core.store.results.study import RawLossesFile

# Two held-out rows could show no difference: they have the same sign in half of all studies of nothing.
ROWS = {"data": RECIPE["data"] | {"max_rows": 240, "held_out_rows": 24}}  # type: ignore[operator]
SHARED: dict[str, Any] = RECIPE | ROWS | {
    "name": "shared", "baseline": {"enabled": True}, "evaluate": {"benchmarks": [], "compare_rows": True}}
STUDY: dict[str, Any] = {
    "name": "tiny-study", "question": "Is it any lower?", "recipe": "shared.yaml", "seeds": [0, 1],
    "arms": {"sft": {"model": "sft"}, "merged": {}, "base": {"model": "base"}},
    "ladder": [{"claim": "Tuning helps.", "lower": "sft", "than": "base"},
               {"claim": "The base is the best.", "lower": "base", "than": "merged"}]}


def write(directory: Path, recipe: dict[str, Any] = SHARED, **changes: Any) -> str:
    """Write the study's file next to its recipe; return its path."""
    (directory / "shared.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    path = directory / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False), encoding="utf-8")
    return str(path)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_study_ends_in_a_ladder_and_goes_on_from_what_is_finished(tmp_path: Path) -> None:
    outcome = study(write(tmp_path))
    result = StudyResult.model_validate_json((outcome.report / "study.json").read_text())
    raw = RawLossesFile.read(outcome.report)
    assert raw is not None and set(raw.losses) == {"sft", "merged", "base"} and outcome.failures == {}
    for arm, seeds in raw.losses.items():  # every number can be recomputed from the raw losses
        for seed, losses in seeds.items():
            assert sum(losses) / sum(raw.tokens) == pytest.approx(result.arms[arm].losses[int(seed)])
    assert result.arms["base"].losses[0] == result.arms["base"].losses[1]
    assert [rung.verdict for rung in result.ladder] == ["shown", "reversed"]
    assert "The ladder breaks at claim 2 of 2" in (outcome.report / "study.md").read_text()
    metrics = client().get_run(outcome.mlflow_run_id).data.metrics
    assert metrics["arm/sft/loss"] == pytest.approx(result.arms["sft"].mean)
    assert metrics["claim/1/difference"] == pytest.approx(result.ladder[0].difference)
    again = study(write(tmp_path))
    assert again.report == outcome.report and json.loads((again.report / "manifest.json").read_text())["stage"] == "study"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_run_that_fails_leaves_the_others(tmp_path: Path) -> None:
    broken = {"model": "merged", "overrides": ["sft.learning_rate=1", "sft.max_grad_norm=0", "sft.warmup_steps=0"]}
    arms = STUDY["arms"] | {"broken": broken}
    try:
        outcome = study(write(tmp_path, arms=arms))
    except StudyIncomplete as incomplete:
        assert incomplete.outcome is not None
        outcome = incomplete.outcome
        assert all("broken" in name for name in outcome.failures)
        assert "## Failed runs" in (outcome.report / "study.md").read_text()
    result = StudyResult.model_validate_json((outcome.report / "study.json").read_text())
    assert [rung.verdict for rung in result.ladder] == ["shown", "reversed"]


def test_a_study_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no file"):
        study.fn(str(tmp_path / "nothing.yaml"))
