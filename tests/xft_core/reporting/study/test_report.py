"""The report of a study says where the ladder breaks, and shows only what has been measured."""

from pathlib import Path

import pytest
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.xft_core.reporting.study.test_ladder import CHOICES, SEEDS, judged, study
from xft_core.reporting.run.plots import STYLE
from xft_core.reporting.study.ladder import Choice, choose
from xft_core.reporting.study.markdown import study_markdown
from xft_core.reporting.study.plots import draw_study, ladder, work

CLAIMS = study(("a", "b"), ("b", "c"))


def test_the_axes_of_the_plots_are_numbers_and_not_formulas() -> None:
    result = judged(CLAIMS, {"a": -0.02, "b": 0.0, "c": 0.0})
    with style.context(["default", STYLE]):
        for figure in (work(result), ladder(result)):
            assert figure is not None
            FigureCanvasAgg(figure).draw()
            texts = [label.get_text() for axis in figure.axes for label in axis.get_xticklabels(which="both")]
            assert any(texts) and not [text for text in texts if "$" in text or "math" in text]


def test_the_report_says_where_the_ladder_breaks(tmp_path: Path) -> None:
    result = judged(CLAIMS, {"a": -0.02, "b": 0.0, "c": 0.0})
    plots = draw_study(result, tmp_path)
    text = study_markdown(result, CLAIMS, plots, {"c seed=3": "out of memory"})
    assert "The ladder breaks at claim 2 of 2** (b is below c): the interval includes zero" in text
    assert "| 1. a is below b |" in text and " 5 of 5 |" in text and " <0.001 |" in text
    assert "`c seed=3`: out of memory" in text and "learning_rate=0.1" in text
    assert set(plots) == {"ladder.png", "work.png"} and all((tmp_path / name).stat().st_size > 5000 for name in plots)


def test_a_ladder_that_holds_says_so() -> None:
    result = judged(study(("a", "b")), {"a": -0.02, "b": 0.0, "c": 0.0})
    assert "**All 1 claims are shown.**" in study_markdown(result, study(("a", "b")), {}, {})


def test_without_any_run_there_is_a_report_all_the_same(tmp_path: Path) -> None:
    result = judged(CLAIMS, {})
    assert draw_study(result, tmp_path) == {}
    text = study_markdown(result, CLAIMS, {}, {})
    assert "no seed has both arms" in text and text.count("not measured") == 2


def test_what_each_arm_chose_from_is_shown() -> None:
    result = judged(CLAIMS, {"a": 0.0, "b": 0.0, "c": 0.0})
    tuned = [CHOICES[0], Choice(settings={"sft.learning_rate": 0.2}, reserved_loss=0.4)]
    arm = result.arms["a"].model_copy(update={"choices": tuned, "chosen": 1})
    text = study_markdown(result.model_copy(update={"arms": {**result.arms, "a": arm}}), CLAIMS, {}, {})
    assert "0.4000 ←" in text and "different numbers of settings: `a` 2, `b` 1" in text


@pytest.mark.parametrize(("losses", "words"), [
    ((0.3, 0.4, 0.5), "`a` takes sft.learning_rate=0.1, the lowest of 0.1, 0.2, 0.3."),
    ((0.5, 0.4, 0.3), "the highest of 0.1, 0.2, 0.3."), ((None, 0.3, 0.4), "0.2, the lowest of 0.2, 0.3."),
    ((0.5, 0.3, 0.4), "")])
def test_a_choice_at_the_edge_of_what_was_tried_is_told(losses: tuple[float | None, ...], words: str) -> None:
    result = judged(CLAIMS, {"a": 0.0, "b": 0.0, "c": 0.0})
    tuned = [Choice(settings={"sft.learning_rate": rate, "model": "sft"}, reserved_loss=loss)
             for rate, loss in zip((0.1, 0.2, 0.3), losses, strict=True)]
    arm = result.arms["a"].model_copy(update={"choices": tuned, "chosen": choose(tuned)})
    text = study_markdown(result.model_copy(update={"arms": {**result.arms, "a": arm}}), CLAIMS, {}, {})
    assert words in text and ("the best may lie beyond" in text) == bool(words)


def test_intervals_of_one_seed_are_said_to_be_over_rows() -> None:
    several = study_markdown(judged(CLAIMS, {"a": 0.0, "b": 0.0, "c": 0.0}), CLAIMS, {}, {})
    missing = {(arm, seed) for arm in "abc" for seed in SEEDS[1:]}
    one = study_markdown(judged(CLAIMS, {"a": 0.0, "b": 0.0, "c": 0.0}, missing), CLAIMS, {}, {})
    assert "over seeds and rows (two-way bootstrap of paired differences)" in several and "rows only" not in several
    assert "over rows only (bootstrap of paired differences)" in one and "another training" in one


def test_a_setting_that_failed_is_not_marked_as_the_best() -> None:
    result = judged(CLAIMS, {"b": 0.0, "c": 0.0})
    failed = [Choice(settings={"sft.learning_rate": rate}, reserved_loss=None) for rate in (0.1, 0.2)]
    arm = result.arms["a"].model_copy(update={"choices": failed, "chosen": 0})
    text = study_markdown(result.model_copy(update={"arms": {**result.arms, "a": arm}}), CLAIMS, {}, {})
    assert text.count("failed") == 2 and "failed ←" not in text


def test_the_same_numbers_give_the_same_pictures(tmp_path: Path) -> None:
    result = judged(CLAIMS, {"a": -0.02, "b": 0.0, "c": 0.01})
    for name in ("one", "two"):
        draw_study(result, tmp_path / name)
    for name in ("ladder.png", "work.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_limits_stand_below_the_outcome_and_an_arm_without_a_setting_says_so() -> None:
    result = judged(CLAIMS, {"a": 0.0, "b": 0.0, "c": 0.0}, {("a", seed) for seed in SEEDS})
    failed = [Choice(settings={"sft.learning_rate": rate}, reserved_loss=None) for rate in (0.1, 0.2)]
    arm = result.arms["a"].model_copy(update={"choices": failed})
    text = study_markdown(result.model_copy(update={"arms": {**result.arms, "a": arm}}), CLAIMS, {}, {}, ["Two runs diverged."])
    assert text.index("ladder breaks") < text.index("Two runs diverged.") < text.index("## Arms")
    [row] = [line for line in text.splitlines() if line.startswith("| `a` ") and "none of its settings works" in line]
    assert "learning_rate" not in row
