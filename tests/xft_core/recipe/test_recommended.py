"""The recommended settings: valid for every recipe that ships, and overridden by the user's own."""

from pathlib import Path

import pytest

from xft_core.recipe.load import load_recipe
from xft_core.recipe.recommended import RESERVE, recommended

RECIPES = sorted((Path(__file__).parents[3] / "deployments" / "recipes").glob("*.yaml"))
WITH_SHARED_EXPERT = [path for path in RECIPES if load_recipe(path).upcycle.shared_expert]


@pytest.mark.parametrize("path", WITH_SHARED_EXPERT, ids=lambda path: path.stem)
def test_a_shipped_recipe_can_take_the_recommended_settings(path: Path) -> None:
    recipe = load_recipe(path, [*recommended(path), "merge.delta_scale=0.8"])
    assert (recipe.merge.ensemble, recipe.merge.rows, recipe.merge.delta_scale) == ("greedy", "reserved", 0.8)
    assert recipe.data.reserves_rows


def test_rows_are_reserved_only_where_the_recipe_reserves_none(tmp_path: Path) -> None:
    for data, expected in [("{}", True), ("{reserved_rows: 40}", False), ("{reserved_path: rows.jsonl}", False)]:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"data: {data}\n", encoding="utf-8")
        assert (RESERVE in recommended(path)) is expected
