"""Studies: the runs they need, arms of one recipe that share runs, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from xft_core.errors import RecipeError
from xft_core.recipe.study import StudyConfig, load_study, reported_runs, tuning_runs

STUDY: dict[str, Any] = {
    "name": "small", "question": "Which is lower?", "recipe": "shared.yaml", "seeds": [0, 1], "tuning_seeds": [5],
    "tuning": {"sft.learning_rate": [0.001, 0.002]},
    "arms": {
        "sft": {"model": "sft"},
        "xft": {"overrides": ["upcycle.num_experts=4", "upcycle.num_experts_per_tok=2"]},
        "xft-moe": {"model": "moe", "overrides": ["upcycle.num_experts=4", "upcycle.num_experts_per_tok=2"]},
        "base": {"model": "base", "tuning": {"sft.learning_rate": [0.001]}}},
    "ladder": [{"claim": "The merged model is below SFT.", "lower": "xft", "than": "sft"}]}


def write(directory: Path, **changes: Any) -> Path:
    """Write a study's file with its recipe; return its path."""
    (directory / "shared.yaml").write_text("name: shared\nupcycle: {num_experts: 8}\n", encoding="utf-8")
    path = directory / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False), encoding="utf-8")
    return path


def test_every_arm_is_tuned_over_the_same_settings(tmp_path: Path) -> None:
    study, recipe = load_study(write(tmp_path))
    variants, runs = tuning_runs(study, recipe)
    assert {(run.arm, run.choice, run.seed) for run in runs} == {
        (arm, choice, 5) for arm in ("sft", "xft", "xft-moe") for choice in (0, 1)}
    assert {variant.recipe.sft.learning_rate for variant in variants} == {0.001, 0.002}
    assert all(variant.recipe.experiment == "small" and variant.recipe.seed == 5 for variant in variants)


def test_arms_of_one_recipe_share_its_runs(tmp_path: Path) -> None:
    study, recipe = load_study(write(tmp_path))
    variants, runs = reported_runs(study, recipe, {"sft": 1, "xft": 0, "xft-moe": 0, "base": 0})
    names = {(run.arm, run.seed): run.variant for run in runs}
    assert names["xft", 0] == names["xft-moe", 0] == "xft learning_rate=0.001 seed=0" != names["xft", 1]
    assert len(variants) == 6 and len(runs) == 8  # sft, xft with xft-moe, and base with another rate than sft
    assert {variant.name for variant in variants} == set(names.values())


def test_a_chosen_setting_is_that_of_the_reported_run(tmp_path: Path) -> None:
    study, recipe = load_study(write(tmp_path))
    variants, runs = reported_runs(study, recipe, {"sft": 1})
    found = {variant.name: variant for variant in variants}
    [rate] = {found[run.variant].recipe.sft.learning_rate for run in runs if run.arm == "sft"}
    assert rate == 0.002 and found[runs[0].variant].settings == {"arm": "sft", "sft.learning_rate": 0.002, "seed": 0}


@pytest.mark.parametrize(("changes", "words"), [
    ({"ladder": [{"claim": "x", "lower": "xft", "than": "nobody"}]}, "nobody"),
    ({"ladder": [{"claim": "x", "lower": "xft", "than": "xft"}]}, "'xft' with itself"),
    ({"tuning": {"sft.learning_rate": []}}, "has no values"),
    ({"tuning": {"seed": [1, 2]}}, "seed is not tuned"),
    ({"seeds": [1, 1]}, "twice"),
    ({"tuning": {"model": ["merged"]}, "arms": {"xft": {}, "sft": {"model": "moe", "tuning": {}}}},
     "arms.sft: model is moe, but"),
    ({"seeds": []}, "seeds"),
    ({"arms": {}, "ladder": []}, "arms"),
    ({"recipe": "missing.yaml"}, "missing.yaml"),
    ({"unknown": 1}, "unknown"),
])
def test_what_makes_no_study_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_study(write(tmp_path, **changes))


@pytest.mark.parametrize("tuning", [{"sft.learning_rat": [1]}, {"sft.learning_rate": [0.1, -1]}])
def test_a_setting_that_no_recipe_takes_is_refused_before_any_run(tmp_path: Path, tuning: dict[str, Any]) -> None:
    study, recipe = load_study(write(tmp_path, tuning=tuning))
    with pytest.raises(RecipeError, match="learning_rat"):
        tuning_runs(study, recipe)
        reported_runs(study, recipe)


def test_an_arm_may_choose_among_the_models_of_one_run(tmp_path: Path) -> None:
    arms = {"sft": {"tuning": {"model": ["sft", "sft_wise_0_7"], "sft.learning_rate": [0.001]}}}
    study, recipe = load_study(write(tmp_path, arms=arms, ladder=[]))
    variants, runs = tuning_runs(study, recipe)
    assert len(variants) == 1 and [study.model_of(run.arm, run.choice) for run in runs] == ["sft", "sft_wise_0_7"]


def test_choices_are_every_combination_in_order() -> None:
    study = StudyConfig(**(STUDY | {"tuning": {"sft.epochs": [1, 2], "sft.learning_rate": [0.1, 0.2]}}))
    assert study.choices("xft")[1] == {"sft.epochs": 1, "sft.learning_rate": 0.2} and len(study.choices("xft")) == 4
    assert study.choices("base") == [{"sft.learning_rate": 0.001}]


@pytest.mark.parametrize("overrides", [["sft.learning_rate=0.1"], ["seed=3"], [" sft.learning_rate = 0.1"]])
def test_an_override_that_the_study_would_overwrite_is_refused(tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"overrides set (seed|sft\.learning_rate), but"):
        load_study(write(tmp_path, arms=STUDY["arms"] | {"own": {"overrides": overrides}}))


def test_an_arm_may_override_what_its_own_tuning_leaves_alone(tmp_path: Path) -> None:
    own = {"overrides": ["sft.learning_rate=0.1"], "tuning": {"sft.epochs": [1]}}
    study, recipe = load_study(write(tmp_path, arms=STUDY["arms"] | {"own": own}))
    variants, _ = reported_runs(study, recipe)
    assert {item.recipe.sft.learning_rate for item in variants if item.settings["arm"] == "own"} == {0.1}
