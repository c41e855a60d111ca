"""The ladder of a study: the verdict on each claim, including failed arms, and where the ladder breaks."""

import numpy as np
import pytest

from xft_core.recipe.study import StudyConfig
from xft_core.reporting.study.ladder import Choice, Measured, StudyResult, choose, judge

ROWS, SEEDS = 300, [0, 1, 2, 3, 4]
CHOICES = [Choice(settings={"sft.learning_rate": 0.1}, reserved_loss=0.5)]


def study(*rungs: tuple[str, str]) -> StudyConfig:
    """Return a study of arms a, b and c with these claims."""
    ladder = [{"claim": f"{lower} is below {than}", "lower": lower, "than": than} for lower, than in rungs]
    return StudyConfig.model_validate({
        "name": "small", "question": "?", "recipe": "x.yaml", "arms": {"a": {}, "b": {}, "c": {}}, "ladder": ladder})


def judged(config: StudyConfig, effects: dict[str, float], missing: set[tuple[str, int]] = frozenset()) -> StudyResult:  # type: ignore[assignment]
    """Judge arms whose loss is 0.5 plus their effect, with some noise over seeds and rows."""
    generator = np.random.default_rng(0)
    tokens_R = generator.integers(20, 60, ROWS)
    base_R = generator.normal(0.5, 0.2, ROWS)
    measured = {
        arm: {seed: Measured((base_R + effect + generator.normal(0, 0.001) + generator.normal(0, 0.02, ROWS)) * tokens_R, 1e9)
              for seed in SEEDS if (arm, seed) not in missing}
        for arm, effect in effects.items()}
    return judge(config, measured, tokens_R, {arm: CHOICES for arm in config.arms})


@pytest.mark.parametrize(("effect", "verdict"), [
    (-0.02, "shown"), (-0.003, "small"), (0.0, "not shown"), (0.02, "reversed")])
def test_a_claim_comes_out_as_the_losses_are(effect: float, verdict: str) -> None:
    [rung] = judged(study(("a", "b")), {"a": effect, "b": 0.0, "c": 0.0}).ladder
    assert rung.verdict == verdict and rung.difference == pytest.approx(effect, abs=0.003)
    assert rung.low is not None and rung.high is not None and rung.low < rung.difference < rung.high  # type: ignore[operator]


def test_the_ladder_breaks_at_the_first_claim_that_is_not_shown() -> None:
    result = judged(study(("a", "b"), ("b", "a"), ("a", "c")), {"a": -0.02, "b": 0.0, "c": 0.0})
    assert [rung.verdict for rung in result.ladder] == ["shown", "reversed", "shown"]
    assert result.breaks_at() is result.ladder[1]
    assert judged(study(("a", "b")), {"a": -0.02, "b": 0.0}).breaks_at() is None


def test_seeds_that_failed_leave_the_others() -> None:
    result = judged(study(("a", "b")), {"a": -0.02, "b": 0.0}, missing={("a", 1), ("b", 4)})
    assert result.ladder[0].seeds == [0, 2, 3] and len(result.ladder[0].of_seeds) == 3
    assert list(result.arms["a"].losses) == [0, 2, 3, 4] and result.arms["c"].mean is None


def test_a_claim_about_an_arm_that_was_not_measured_is_not_tested() -> None:
    result = judged(study(("a", "c"), ("a", "b")), {"a": -0.02, "b": 0.0})
    assert [rung.verdict for rung in result.ladder] == ["not measured", "shown"]
    assert result.ladder[0].corrected is None  # and it counts as a claim all the same
    assert result.ladder[1].corrected == pytest.approx(2 * result.ladder[1].p_value)  # type: ignore[operator]


def test_several_claims_cost_significance() -> None:
    one = judged(study(("a", "b")), {"a": -0.02, "b": 0.0, "c": 0.0}).ladder[0]
    three = judged(study(("a", "b"), ("b", "c"), ("c", "b")), {"a": -0.02, "b": 0.0, "c": 0.0}).ladder[0]
    assert one.corrected is not None and three.corrected == pytest.approx(3 * one.corrected)


def test_the_lowest_reserved_loss_is_chosen() -> None:
    losses = [0.4, None, 0.3, 0.3]
    assert choose([Choice(settings={}, reserved_loss=loss) for loss in losses]) == 2
    assert choose([Choice(settings={}, reserved_loss=None)]) == 0
