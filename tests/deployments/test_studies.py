"""The shipped studies can be judged: every arm is a valid recipe whose model is built, and rows are reserved for choosing."""

from pathlib import Path

import pytest

from xft_core.recipe.study import load_study, reported_runs, tuning_runs
from xft_core.recipe.study_checks import check_study

STUDIES = sorted((Path(__file__).parents[2] / "deployments" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_can_be_judged(path: Path) -> None:
    study, recipe = load_study(path)
    check_study(study, recipe)
    variants, _ = tuning_runs(study, recipe)
    assert all(run.recipe.experiment == study.name for run in [*variants, *reported_runs(study, recipe)[0]])


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} >= {"demo", "options"}
