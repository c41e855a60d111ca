"""Signs that a run went wrong: a diverging curve, unused experts, coefficients. A check can stop the run for each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xft_core.recipe.checks import RunWentWrong, TrainingWatch, merge_findings, mixing_findings, raise_for, training_findings
from xft_core.recipe.sections import ChecksConfig
from xft_core.store.results.curve import CurvePoint, CurveValues
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.results.mix import MixMetrics
from xft_core.store.results.sft import WatchedTraining

STOP_ALL = ChecksConfig(
    diverging_loss="stop", dead_experts="stop", unmoved_coefficients="stop", worse_than_uniform="stop",
    worse_than_base="stop")
WORSE = MergeMetrics(parameters=1, held_out_nll=1.2)


def watched(losses: list[float], loads: list[float] | None = None, steps_between: int = 10) -> TrainingWatch:
    loads = loads if loads is not None else [0.2] * len(losses)
    return TrainingWatch(
        CurvePoint(steps_between * (index + 1), CurveValues(loss=loss, expert_load_min=load))
        for index, (loss, load) in enumerate(zip(losses, loads, strict=True)))


def test_a_loss_that_climbs_has_diverged_and_one_high_point_has_not() -> None:
    falling = [2.0 - 0.05 * index for index in range(20)]
    assert watched(falling).diverged_at_step is None
    assert watched([*falling, 2.0, *[1.0] * 10]).diverged_at_step is None
    assert watched([*falling, *[1.9] * 5]).diverged_at_step == 230
    assert watched([0.02] * 5 + [0.2] * 20).diverged_at_step is None  # ten times as much, but still next to nothing


@given(st.lists(st.floats(0.5, 0.79), min_size=5, max_size=60))
def test_a_loss_within_a_band_never_diverges(losses: list[float]) -> None:
    assert watched(losses).diverged_at_step is None


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 0.5)), max_size=40), st.integers(0, 40))
def test_a_resumed_training_comes_to_the_same(points: list[tuple[float, float]], cut: int) -> None:
    losses, loads = [loss for loss, _ in points], [load for _, load in points]
    resumed = watched(losses[:cut], loads[:cut])
    for index in range(min(cut, len(points)), len(points)):
        resumed.add(10 * (index + 1), CurveValues(loss=losses[index], expert_load_min=loads[index]))
    assert resumed.found() == watched(losses, loads).found()


def test_an_expert_is_dead_when_unused_for_long_enough_and_not_for_a_while() -> None:
    assert watched([1.0] * 30, [0.2, *[0.0] * 20, *[0.2] * 9]).dead_steps == 200
    assert watched([1.0] * 30, [0.2, 0.001] * 15).dead_steps == 10
    dead = WatchedTraining(dead_expert_steps=200, diverged_at_step=None)
    assert "for 200 consecutive steps" in training_findings(dead, ChecksConfig())[0]
    assert training_findings(dead, ChecksConfig(dead_expert_steps=201)) == []


def test_a_report_names_what_only_stop_stops_for() -> None:
    metrics = WatchedTraining(diverged_at_step=240, dead_expert_steps=120)
    assert len(training_findings(metrics, ChecksConfig())) == 2
    assert training_findings(metrics, ChecksConfig(), only_stop=True) == []
    assert ["step 240" in text for text in training_findings(metrics, STOP_ALL, only_stop=True)] == [True, False]
    mixing = MixMetrics.from_flat({"held_out_nll_merged": 1.0, "held_out_nll_uniform": 0.9, "movement_max": 0.001})
    assert len(mixing_findings(mixing, "learned", ChecksConfig())) == 2
    assert mixing_findings(mixing, "learned", ChecksConfig(), only_stop=True) == []
    assert len(mixing_findings(mixing, "learned", STOP_ALL, only_stop=True)) == 2
    even = MixMetrics.from_flat({"held_out_nll_merged": 0.90004, "held_out_nll_uniform": 0.90001, "movement_max": 0.1})
    assert mixing_findings(even, "learned", STOP_ALL) == []  # no visible difference
    assert mixing_findings(mixing, "routing", STOP_ALL) == []  # nothing was learned, so learning cannot have failed


def test_a_merged_model_worse_than_the_base_stops_if_asked() -> None:
    assert merge_findings(WORSE, 1.0, ChecksConfig()) == []
    assert merge_findings(MergeMetrics(parameters=1, held_out_nll=0.9), 1.0, STOP_ALL) == []
    assert merge_findings(WORSE, None, STOP_ALL) == []
    with pytest.raises(RunWentWrong, match=r"1\.2000 against 1\.0000.*set that field of checks to report"):
        raise_for(merge_findings(WORSE, 1.0, STOP_ALL))


def test_training_stops_where_it_diverges() -> None:
    watch = watched([1.0] * 5)
    for index in range(5, 9):
        watch.add(10 * (index + 1), CurveValues(loss=1.8))
    watch.stop_for(ChecksConfig())
    with pytest.raises(RunWentWrong, match="diverged: at step"):
        watch.stop_for(STOP_ALL)
