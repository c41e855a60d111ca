"""The checkpoint that is merged: its uniform merge is the best on reserved rows. Without such rows, none is chosen."""

import json
import shutil
from pathlib import Path

import pytest

from tests.xft_core.stages.test_sft import changed, ready  # noqa: F401  (a fixture)
from xft_core.errors import DataError, RecipeError
from xft_core.files.digests import file_digest
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import read_shape
from xft_core.recipe.load import parse
from xft_core.recipe.sections import MergeConfig, Recipe, SftConfig
from xft_core.recipe.steps import Made, model_places, pipeline_steps
from xft_core.stages.configs import ChooseCheckpointStage, MixStage, SftStage
from xft_core.stages.run import run_stage

MERGE = MergeConfig(method="uniform", precision="fp32")
BEST = Recipe().model_copy(update={"sft": SftConfig(merge_at="best", merge_checkpoints=3)})


@pytest.fixture(scope="module")
def snapshots(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Train an MoE with three snapshots."""
    root = tmp_path_factory.mktemp("snapshots")
    run_stage(SftStage(output=root / "moe", model=str(ready / "moe"), data=ready / "data", sft=changed(), snapshots=3))
    return root / "moe" / "snapshots"


def stage(output: Path, data: Path, snapshots: Path) -> ChooseCheckpointStage:
    return ChooseCheckpointStage(
        output=output, models={str(number): str(snapshots / str(number)) for number in (1, 2, 3)}, data=data, merge=MERGE)


def with_reserved(ready: Path, target: Path, rows: Path) -> Path:  # noqa: F811
    shutil.copytree(ready / "data", target)
    (target / "manifest.json").unlink()
    shutil.copyfile(rows, target / "reserved.safetensors")
    return target


@pytest.mark.slow
def test_the_best_on_reserved_rows_is_chosen_whole(ready: Path, snapshots: Path, tmp_path: Path) -> None:  # noqa: F811
    data = with_reserved(ready, tmp_path / "data", ready / "data" / "held_out.safetensors")
    made = run_stage(stage(tmp_path / "chosen", data, snapshots)).manifest
    choice = json.loads((tmp_path / "chosen" / "choice.json").read_text())
    assert made.metrics["reserved_nll"] == min(choice["reserved_nll"].values())
    expected = {}  # here the reserved rows are the held-out ones
    for number in (1, 2, 3):
        mixed = run_stage(MixStage(output=tmp_path / f"mix{number}", model=str(snapshots / str(number)), data=ready / "data",
                                   merge=MERGE))
        expected[str(number)] = mixed.manifest.metrics["held_out_nll_uniform"]
    assert choice["reserved_nll"] == pytest.approx(expected, abs=1e-6)
    assert choice["chosen"] == str(made.metrics["chosen"]) == min(expected, key=lambda name: expected[name])
    for name in ("model.safetensors", "config.json", "router.json", "tokenizer.json"):
        assert file_digest(tmp_path / "chosen" / name) == file_digest(snapshots / choice["chosen"] / name)


def test_without_reserved_rows_nothing_is_chosen(ready: Path, snapshots: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(DataError, match="no reserved rows to choose on"):
        run_stage(stage(tmp_path / "chosen", ready / "data", snapshots))
    with pytest.raises(RecipeError, match="choosing needs rows that are neither trained on nor"):
        parse(Recipe, {}, ["sft.merge_at=best"])


def test_what_is_chosen_is_what_is_mixed_merged_and_measured(ready: Path) -> None:  # noqa: F811
    found = {step.role: step for step in pipeline_steps(BEST)}
    assert model_places(BEST)["moe"] == Made("choose_checkpoint")
    assert [found[role].given["model"] for role in ("mix", "merge", "generate_moe_0")] == [Made("choose_checkpoint")] * 3
    assert found["sft_moe"].given["snapshots"] == 3 and len(found["choose_checkpoint"].given["models"]) == 3
    plan = {item.role: item for item in make_plan(BEST, read_shape(ready / "dense" / "config.json"))}
    plain = {item.role: item for item in make_plan(Recipe(), read_shape(ready / "dense" / "config.json"))}
    assert plan["sft_moe"].kept == 4 * plain["sft_moe"].kept and plan["choose_checkpoint"].kept > 0
