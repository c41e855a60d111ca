"""A study that cannot be judged is refused before its runs, with all problems in one message."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.xft_core.recipe.test_study import STUDY, write
from xft_core.errors import RecipeError
from xft_core.recipe.study import load_study
from xft_core.recipe.study_checks import check_study

ONE_SETTING: dict[str, Any] = {"tuning": {}}


def compared(directory: Path, **changes: Any) -> Path:
    """Return the study and a recipe that compares rows."""
    path = write(directory, **changes)
    shared = yaml.safe_load((directory / "shared.yaml").read_text(encoding="utf-8"))
    (directory / "shared.yaml").write_text(yaml.safe_dump(shared | {"evaluate": {"compare_rows": True}}), encoding="utf-8")
    return path


def test_a_study_that_can_be_judged_is_let_pass(tmp_path: Path) -> None:
    check_study(*load_study(compared(tmp_path, **ONE_SETTING)))


@pytest.mark.parametrize(("changes", "words"), [
    ({}, "no rows are reserved"),
    (ONE_SETTING | {"arms": STUDY["arms"] | {"soup": {"model": "sft_soup"}}}, "'sft_soup', which its run does not make"),
    (ONE_SETTING | {"arms": STUDY["arms"] | {"short": {"overrides": ["data.max_length=99"]}}}, "'short' changes the section"),
    ({"tuning": {"data.max_length": [1024, 99]}}, "'sft' changes the section"),  # with its second setting alone
    ({"tuning": {"sft.learning_rate": [0.001, "1e-3"]}}, "'sft' has a setting twice: {'sft.learning_rate': '1e-3'}"),
    (ONE_SETTING | {
        "arms": STUDY["arms"] | {"same": {"overrides": ["upcycle.num_experts_per_tok=2", "upcycle.num_experts=0x4"]}},
        "ladder": [{"claim": "It differs.", "lower": "same", "than": "xft"}]}, "'same' and 'xft' are the same models"),
])
def test_what_cannot_be_judged_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check_study(*load_study(compared(tmp_path, **changes)))


def test_all_that_is_wrong_is_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        check_study(*load_study(write(tmp_path)))
    assert str(found.value).count("\n  - ") == 5  # four arms whose rows are not measured, and no reserved rows
