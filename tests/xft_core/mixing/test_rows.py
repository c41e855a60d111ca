"""Reserved rows: no model trains on them, they are never reported rows, and mixing can be told to use them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.xft_core.mixing.models import mixed as mix
from tests.xft_core.mixing.models import prepared, tuned
from xft_core.data.rows import load_rows
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig, MergeConfig, Recipe
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import stage_key
from xft_core.store.manifest import read_manifest


def tokens(data: Path, split: str) -> set[tuple[int, ...]]:
    rows = load_rows(data, split)
    return {tuple(rows[index][0].tolist()) for index in range(len(rows))}


def test_they_are_taken_from_those_to_train_on(root: Path, tmp_path: Path) -> None:
    tuned(tmp_path)
    plain = prepared(tmp_path)
    splits = {name: tokens(root / "data", name) for name in ("train", "reserved", "held_out")}
    assert [len(splits[name]) for name in ("train", "reserved", "held_out")] == [26, 8, 6]
    assert sum(map(len, splits.values())) == len(set.union(*splits.values()))
    assert splits["held_out"] == tokens(plain, "held_out")  # the reported rows stay the same
    assert splits["train"] | splits["reserved"] == tokens(plain, "train")
    assert not (plain / "reserved.safetensors").exists() and not (plain / "reserved.jsonl").exists()
    assert read_manifest(root / "data").metrics["reserved_rows"] == 8
    assert "reserved_rows" not in read_manifest(plain).metrics


def test_none_is_the_key_as_ever() -> None:
    def key(**fields: int) -> str:
        return stage_key(PrepareStage(output=Path("out"), data=DataConfig(**fields)), {})  # type: ignore[arg-type]

    assert key() == key(reserved_rows=0) != key(reserved_rows=8)
    assert "reserved_rows" not in PrepareStage(output=Path("out")).settings()["data"]


def test_mixing_uses_the_rows_that_it_is_told(root: Path, tmp_path: Path) -> None:
    found = [mix(root, tmp_path / rows, rows=rows)["movement_max"] for rows in ("held_in", "reserved")]
    assert found[0] != found[1]
    routing = [mix(root, tmp_path / f"routing {rows}", rows=rows, method="routing")["movement_max"]
               for rows in ("held_in", "reserved")]
    assert routing[0] != routing[1]


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"data\.reserved_rows is 0"):
        Recipe(merge=MergeConfig(rows="reserved"))
    Recipe(merge=MergeConfig(rows="reserved"), data=DataConfig(reserved_rows=128))
    tuned(tmp_path)
    prepared(tmp_path)
    with pytest.raises(DataError, match="has no reserved rows"):
        mix(tmp_path, tmp_path / "mix", rows="reserved")


@pytest.mark.parametrize(("changes", "message"), [
    ({"delta_scale": None, "method": "uniform"}, "delta_scale is empty"),
    ({"generator_from": "x"}, "generator is free"),
    ({"generator": "graph", "granularity": "tensor"}, "coefficients for whole layers"),
    ({"keep_features": True, "granularity": "block"}, "coefficients for whole layers"),
    ({"generator": "graph", "generator_from": "x", "headroom": True}, "learns nothing"),
    ({"generator": "graph", "generator_from": "x", "delta_scale": None}, "learns nothing"),
    ({"generator": "graph", "generator_from": "x", "shared_expert_weight": None}, "predicts only alpha")])
def test_choices_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MergeConfig(**changes)  # type: ignore[arg-type]
