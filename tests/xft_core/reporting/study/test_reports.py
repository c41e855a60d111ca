"""A study chooses on reserved rows and reports on held-out rows, and refuses what cannot be compared."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xft_core.errors import ArtifactError, RecipeError
from xft_core.recipe.sections import Recipe
from xft_core.recipe.study import StudyConfig, reported_runs, tuning_runs
from xft_core.reporting.study.ladder import Choice, choose, chosen_settings
from xft_core.reporting.study.reports import reported, tuned
from xft_core.store.results.report import RunRowsFile

STUDY = StudyConfig.model_validate({
    "name": "small", "question": "Which is lower?", "recipe": "recipe.yaml", "seeds": [3, 4], "tuning_seeds": [0, 1],
    "tuning": {"sft.learning_rate": [0.1, 0.2]}, "arms": {"sft": {"model": "sft"}, "merged": {}}})
RESERVED = {  # by rate and seed
    (0.1, 0): {"sft": 0.5, "merged": 0.9}, (0.1, 1): {"sft": 0.7, "merged": 0.9},
    (0.2, 0): {"sft": 0.8, "merged": 0.4}, (0.2, 1): {"sft": 0.9, "merged": 0.6}}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def report(name: str, **fields: object) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        content = {"tokens": [1, 3], "losses": {"sft": [1.0, 2.0], "merged": [0.5, 1.5]}} | fields
        RunRowsFile.model_validate(content).write(directory)
        return directory
    return report


def tuning_reports(write: Write) -> dict[str, Path]:
    variants, _ = tuning_runs(STUDY, Recipe())
    assert len(variants) == 4  # both arms are models of the same runs
    return {item.name: write(item.name, reserved_nll=RESERVED[item.recipe.sft.learning_rate, item.recipe.seed])
            for item in variants}


def test_an_arm_chooses_by_the_mean_over_the_tuning_seeds(write: Write) -> None:
    found = tuned(STUDY, Recipe(), tuning_reports(write))
    assert [item.settings for item in found["sft"]] == [{"sft.learning_rate": 0.1}, {"sft.learning_rate": 0.2}]
    assert [item.reserved_loss for item in found["sft"]] == [pytest.approx(0.6), pytest.approx(0.85)]
    assert [item.reserved_loss for item in found["merged"]] == [pytest.approx(0.9), pytest.approx(0.5)]


def test_a_setting_that_failed_at_one_seed_has_no_loss(write: Write) -> None:
    reports = tuning_reports(write)
    _, runs = tuning_runs(STUDY, Recipe())
    failed = next(item.variant for item in runs if (item.choice, item.seed) == (1, 1))
    del reports[failed]
    for choices in tuned(STUDY, Recipe(), reports).values():
        assert choices[0].reserved_loss is not None and choices[1].reserved_loss is None


@pytest.mark.parametrize("diverged", [
    {"losses": {"merged": [0.5, 1.5]}, "reserved_nll": {"merged": 0.1}},  # without sft, whose losses are no numbers
    {"reserved_nll": {"sft": float("inf"), "merged": 0.1}}])
def test_a_setting_that_diverged_is_not_chosen(write: Write, diverged: dict[str, object]) -> None:
    reports = tuning_reports(write)
    _, runs = tuning_runs(STUDY, Recipe())
    reports[next(item.variant for item in runs if (item.choice, item.seed) == (0, 0))] = write("diverged", **diverged)
    found = tuned(STUDY, Recipe(), reports)
    assert [item.reserved_loss for item in found["sft"]] == [None, pytest.approx(0.85)] and choose(found["sft"]) == 1
    assert [item.reserved_loss for item in found["merged"]] == [pytest.approx(0.5), pytest.approx(0.5)]


def test_a_run_whose_rows_were_not_written_has_no_loss_to_choose_by(write: Write) -> None:
    reports = tuning_reports(write)
    (next(iter(reports.values())) / RunRowsFile.file_name).unlink()  # as where the merged model diverged
    assert [item.reserved_loss for item in tuned(STUDY, Recipe(), reports)["sft"]] == [None, pytest.approx(0.85)]


def test_choosing_on_the_reported_rows_is_refused(write: Write) -> None:
    reports = {name: write(f"{name} without reserved rows") for name in tuning_reports(write)}
    with pytest.raises(RecipeError, match="no rows are reserved"):
        tuned(STUDY, Recipe(), reports)


def test_every_arm_is_read_at_every_seed_with_its_work(write: Write) -> None:
    variants, runs = reported_runs(STUDY, Recipe(), {"sft": 0, "merged": 1})
    assert len(variants) == 4  # the arms chose different rates
    reports = {
        item.name: write(item.name, losses={"sft": [float(number), 2.0], "merged": [1.0, 10.0 + number]},
                         training_flops={"sft": 1e9})
        for number, item in enumerate(variants)}
    measured, tokens, lacking = reported(STUDY, runs, reports)
    assert not lacking
    assert tokens.tolist() == [1, 3]
    assert {arm: list(seeds) for arm, seeds in measured.items()} == {"sft": [3, 4], "merged": [3, 4]}
    numbers = {item.name: number for number, item in enumerate(variants)}
    for run in runs:
        found = measured[run.arm][run.seed]
        expected = [numbers[run.variant], 2.0] if run.arm == "sft" else [1.0, 10.0 + numbers[run.variant]]
        assert found.loss_R.tolist() == expected
        assert found.training_flops == (1e9 if run.arm == "sft" else None)
    del reports[runs[0].variant]  # a run that failed is left out, and the others stay
    assert list(reported(STUDY, runs, reports)[0]["sft"]) == [4]


def test_what_cannot_be_compared_is_refused(write: Write) -> None:
    _, runs = reported_runs(STUDY, Recipe())
    names = list(dict.fromkeys(item.variant for item in runs))
    whole = {name: write(name) for name in names}
    with pytest.raises(ArtifactError, match=r"different rows .* 6 response tokens, theirs 4"):
        reported(STUDY, runs, whole | {names[-1]: write("other rows", tokens=[1, 5])})
    with pytest.raises(ArtifactError, match="all of them failed"):
        reported(STUDY, runs, {})


def test_a_reported_run_that_diverged_is_left_out_with_the_reason_and_the_others_stay(write: Write) -> None:
    _, runs = reported_runs(STUDY, Recipe())
    names = list(dict.fromkeys(item.variant for item in runs))  # one run for each of the seeds 3 and 4
    whole = {name: write(name) for name in names}
    measured, _, lacking = reported(STUDY, runs, whole | {names[0]: write("no sft", losses={"merged": [1.0, 1.0]})})
    assert {arm: list(seeds) for arm, seeds in measured.items()} == {"merged": [3, 4], "sft": [4]}
    assert "'sft'" in lacking[names[0]] and "diverged" in lacking[names[0]]
    (whole[names[0]] / RunRowsFile.file_name).unlink()  # no model of the run has losses
    measured, _, lacking = reported(STUDY, runs, whole)
    assert {arm: list(seeds) for arm, seeds in measured.items()} == {"merged": [4], "sft": [4]} and list(lacking) == names[:1]
    (whole[names[1]] / RunRowsFile.file_name).unlink()
    with pytest.raises(ArtifactError, match="diverged"):
        reported(STUDY, runs, whole)


def test_an_arm_whose_settings_all_failed_is_not_run() -> None:
    failed, works = Choice(settings={}, reserved_loss=None), Choice(settings={}, reserved_loss=1.0)
    chosen = chosen_settings({"sft": [failed, failed], "merged": [failed, works]})
    assert chosen == {"merged": 1}
    assert {item.arm for item in reported_runs(STUDY, Recipe(), chosen)[1]} == {"merged"}
    assert chosen_settings({"sft": [failed]}) == {"sft": 0}  # nothing to choose from, so nothing was run to choose
