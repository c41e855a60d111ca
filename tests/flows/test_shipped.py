"""Recipes and studies by name, and files with the same names."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from flows.shipped import CODE, DEPLOYMENTS, shipped_or_file


def test_a_bare_name_is_what_ships_and_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = shipped_or_file("recipes")
    assert recipe("demo") == CODE / "deployments" / "recipes" / "demo.yaml"
    assert shipped_or_file("studies")("demo") == DEPLOYMENTS / "studies" / "demo.yaml"
    for text in ("demo.yaml", "./demo", "mine/demo", str(tmp_path / "demo")):
        assert recipe(text) == Path(text)  # a path is a path, whether it exists or not
    Path("demo").write_text("name: mine\n")
    assert recipe("demo") == Path("demo")


def test_a_name_of_nothing_is_told_with_those_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentTypeError, match=r"no file 'dmeo'.*demo, .*smollm2_cpu"):
        shipped_or_file("recipes")("dmeo")


def test_the_deployments_beside_the_recipes_are_those_of_the_root() -> None:
    assert (DEPLOYMENTS / "prefect.yaml").read_text() == (CODE / "prefect.yaml").read_text()
