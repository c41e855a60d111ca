"""Row by row: the loss of each held-out row and the work of training; whole models averaged by a stage; the report of both."""

import json
import math
from pathlib import Path

import pytest

from tests.factories import dense_model
from tests.xft_core.stages.test_report import HELD_OUT, make_artifact, make_artifacts, report
from tests.xft_core.stages.test_sft import changed, ready  # noqa: F401  (a fixture)
from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import ArtifactError
from xft_core.planning.shape import read_shape
from xft_core.planning.work import mixing_flops, training_flops
from xft_core.recipe.load import parse
from xft_core.recipe.sections import MergeConfig, Recipe, SftConfig, UpcycleConfig, WorkToMatch
from xft_core.recipe.steps import rivals
from xft_core.stages.configs import AverageModelsStage, CompareStage, MixStage, RowLossesStage, SftStage, UpcycleStage
from xft_core.stages.run import run_stage, stage_key
from xft_core.store.manifest import Manifest

LEARN = MergeConfig(batch_size=4, micro_batch_size=2, precision="fp32", epochs=0.5)


@pytest.fixture(scope="module")
def tuned(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Create dense SFT (dense), an MoE's (moe), and its learned coefficients (mix)."""
    root = tmp_path_factory.mktemp("tuned")
    for name in ("dense", "moe"):
        run_stage(SftStage(output=root / name, model=str(ready / name), data=ready / "data", sft=changed(epochs=1.5)))
    run_stage(MixStage(output=root / "mix", model=str(root / "moe"), data=ready / "data", merge=LEARN))
    return root


def measured(ready: Path, output: Path, model: Path, *trained_by: Path) -> Manifest:  # noqa: F811
    return run_stage(RowLossesStage(output=output, model=str(model), data=ready / "data", trained_by={
        path.name: path for path in trained_by})).manifest


def test_rows_add_up_to_the_held_out_loss(ready: Path, tuned: Path, tmp_path: Path) -> None:  # noqa: F811
    made = measured(ready, tmp_path / "rows", tuned / "moe", tuned / "moe")
    rows = json.loads((tmp_path / "rows" / "row_losses.json").read_text())["held_out"]
    assert len(rows) == 6 == made.metrics["rows"]
    expected = json.loads((tuned / "moe" / "manifest.json").read_text())["metrics"]["held_out_nll"]
    assert sum(nll for nll, _ in rows) / sum(tokens for _, tokens in rows) == pytest.approx(expected, abs=1e-5)
    assert made.metrics["nll"] == pytest.approx(expected, abs=1e-5) and "reserved_nll" not in made.metrics


def test_work_is_steps_times_that_of_a_step(ready: Path, tuned: Path, tmp_path: Path) -> None:  # noqa: F811
    shape = read_shape(ready / "dense" / "config.json")
    rows = load_rows(ready / "data", "train")
    total = sum(rows.lengths())
    length = total / len(PackedRows(rows, max(rows.lengths()), packing=True))
    moe = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
    assert measured(ready, tmp_path / "base", ready / "dense").metrics["training_tokens"] == 0
    dense = measured(ready, tmp_path / "dense", tuned / "dense", tuned / "dense").metrics
    assert dense["training_tokens"] == pytest.approx(1.5 * total, rel=0.1)
    assert dense["training_flops"] == pytest.approx(dense["training_tokens"] * training_flops(shape, None, length))
    merged = measured(ready, tmp_path / "merged", tuned / "dense", tuned / "moe", tuned / "mix").metrics
    mixed = merged["training_tokens"] - dense["training_tokens"]
    assert mixed == pytest.approx(0.5 * total, rel=0.1)
    assert merged["training_flops"] == pytest.approx(
        dense["training_tokens"] * training_flops(shape, moe, length) + mixed * mixing_flops(shape, length))


def test_a_teacher_and_the_start_of_the_routers_are_work(ready: Path, tuned: Path, tmp_path: Path) -> None:  # noqa: F811
    shape, rows = read_shape(ready / "dense" / "config.json"), load_rows(ready / "data", "train")
    total = sum(rows.lengths())
    moe = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
    distilled = MergeConfig(**(LEARN.model_dump() | {"objective": "distill"}))
    run_stage(MixStage(output=tmp_path / "mix", model=str(tuned / "moe"), data=ready / "data", merge=distilled))
    plain, taught = (measured(ready, tmp_path / f"of_{mix.parent.name}", tuned / "dense", tuned / "moe", mix).metrics
                     for mix in (tuned / "mix", tmp_path / "mix"))
    length = total / len(PackedRows(rows, max(rows.lengths()), packing=True))
    without = measured(ready, tmp_path / "without", tuned / "moe", tuned / "moe").metrics
    mixed = plain["training_tokens"] - without["training_tokens"]
    assert taught["training_flops"] - plain["training_flops"] == pytest.approx(mixed * shape.forward_flops(length, moe))

    started = UpcycleConfig(num_experts=4, num_experts_per_tok=3, experts_from="checkpoints", router_start="trained")
    run_stage(UpcycleStage(
        output=tmp_path / "upcycle", model=str(ready / "dense"), data=ready / "data", upcycle=started,
        experts={str(number): str(ready / "dense") for number in (1, 2, 3)}))
    found = measured(ready, tmp_path / "started", tmp_path / "upcycle", tmp_path / "upcycle").metrics
    row = total / len(rows)
    dense_work = total * (4 * shape.forward_flops(row) + 2 * shape.num_layers * shape.hidden_size**2)
    assert found["training_tokens"] == pytest.approx(4 * total)
    assert found["training_flops"] == pytest.approx(dense_work + 10 * total * shape.forward_flops(row, started))


def test_an_artifact_that_is_no_training_is_refused(ready: Path, tuned: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ArtifactError, match=r"is an artifact of prepare\. Give those of sft, mix and upcycle only"):
        measured(ready, tmp_path / "x", tuned / "dense", ready / "data")


@pytest.mark.slow
def test_a_matched_training_does_the_work_that_it_is_to_match(ready: Path, tuned: Path, tmp_path: Path) -> None:  # noqa: F811
    moe = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
    work = WorkToMatch(kind="flops", upcycle=moe, epochs=1.5, max_steps=None, mixing_epochs=0.5, mixing_batch_size=4)
    stage = SftStage(output=tmp_path / "long", model=str(ready / "dense"), data=ready / "data", sft=changed(), match=work)
    run_stage(stage)
    long = measured(ready, tmp_path / "rows", tmp_path / "long", tmp_path / "long").metrics["training_flops"]
    merged = measured(ready, tmp_path / "merged", tuned / "dense", tuned / "moe", tuned / "mix").metrics["training_flops"]
    one_step = long / json.loads((tmp_path / "long" / "manifest.json").read_text())["metrics"]["steps"]
    assert long == pytest.approx(merged, abs=0.75 * one_step)  # up to a step, and the last one of an epoch, which is shorter
    other_epochs = stage.model_copy(update={"sft": SftConfig(**(stage.sft.model_dump() | {"epochs": 9.0}))})
    assert stage_key(other_epochs) == stage_key(stage)  # only the work counts


def test_a_mean_of_models_is_measured_and_its_key_is_of_weights_and_contents(ready: Path, tmp_path: Path) -> None:  # noqa: F811
    other = dense_model(tmp_path / "other", seed=1)

    def stage(name: str, weights: dict[str, float], **models: Path) -> AverageModelsStage:
        return AverageModelsStage(output=tmp_path / name, models={key: str(path) for key, path in models.items()},
                                  weights=weights, data=ready / "data")

    half = {"a": 0.5, "b": 0.5}
    made = run_stage(stage("mean", half, a=ready / "dense", b=other)).manifest
    assert math.isfinite(made.metrics["held_out_nll"]) and made.metrics["parameters"] > 10_000
    assert stage_key(stage("x", {"c": 0.5, "d": 0.5}, c=ready / "dense", d=other)) == made.key
    assert stage_key(stage("x", {"a": 0.4, "b": 0.6}, a=ready / "dense", b=other)) != made.key
    with pytest.raises(ValueError, match="they must sum to 1"):
        stage("x", {"a": 0.5, "b": 0.6}, a=ready / "dense", b=other)
    with pytest.raises(ValueError, match="use the same names"):
        stage("x", half, a=ready / "dense")


RIVALS = {"average": "last_k", "runs": 2, "wise": [0.7]}
WORK = {"base": (0.0, 0.0), "sft": (1e6, 1e9), "sft_soup": (2e6, 2e9), "moe": (1e6, 2e9), "merged": (1e6, 2.02e9)}


def with_rows(root: Path, held_out: dict[str, float], reserved: bool = False) -> dict[str, Path]:
    """Create artifacts of a run with rivals: 50 rows of 10 tokens, whose losses spread around ``held_out``."""
    root.mkdir(exist_ok=True)
    found = make_artifacts(root, held_out=HELD_OUT | {name: held_out[name] for name in HELD_OUT if name in held_out})
    for model, nll in held_out.items():
        rows = [(10 * (nll + 0.001 * ((row * 7 + len(model)) % 11 - 5) + 0.1 * (row % 5)), 10) for row in range(50)]
        tokens, flops = WORK.get(model, WORK["sft"])
        found[f"row_losses_{model}"] = make_artifact(
            root / f"row_losses_{model}", "row_losses",
            {"nll": sum(loss for loss, _ in rows) / 500, "rows": 50, "training_tokens": tokens, "training_flops": flops}
            | ({"reserved_nll": nll + 1} if reserved else {}),
            {"row_losses.json": {"held_out": rows}})
    return found


LOSSES = {"base": 0.9, "sft": 0.55, "sft_average": 0.54, "sft_soup": 0.535, "sft_wise_0_7": 0.53, "sft_average_wise_0_7": 0.53,
          "sft_soup_wise_0_7": 0.51, "moe": 0.52, "merged": 0.53}


def test_the_report_has_the_merged_model_beside_each_rival(tmp_path: Path) -> None:
    assert set(rivals(parse(Recipe, {"baseline": RIVALS}))) <= LOSSES.keys()
    result, output = report(tmp_path, with_rows(tmp_path / "run", LOSSES), baseline=RIVALS)
    metrics, text = result.manifest.metrics, (output / "comparison.md").read_text()
    assert metrics["merged_over_sft_soup_held_out_nll"] == pytest.approx(-0.005, abs=1e-3)
    low, high = (metrics[f"merged_over_sft_soup_held_out_nll_{end}"] for end in ("low", "high"))
    assert low < metrics["merged_over_sft_soup_held_out_nll"] < high < 0
    assert (metrics["sft_soup_training_flops"], metrics["merged_training_flops"]) == (2e9, 2.02e9)
    assert metrics["sft_held_out_nll"] == 0.55  # as measured by the stage that trained it
    lines = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in text.splitlines()
             if len(cells := line.split("|")) == 9}
    assert lines["SFT soup of 2"][3:] == ["2.00", "0.99", "work"]
    assert lines["SFT, mean of last 5"][3:] == ["1.00", "0.50", "tokens"]
    assert lines["SFT soup of 2, WiSE 0.7"][1].startswith("+0.0")
    assert "At equal floating-point work: the merged model's held-out loss is" in text and "than that of SFT soup of 2" in text
    assert "found by looking at these rows" in text  # four models have equal tokens


@pytest.mark.slow
def test_without_row_losses_a_report_has_nothing_of_them(tmp_path: Path) -> None:
    _, output = report(tmp_path, make_artifacts(tmp_path))
    assert "row_comparisons" not in json.loads((output / "comparison.json").read_text())
    assert not (output / "row_losses.json").exists()


@pytest.mark.slow
def test_rivals_are_chosen_on_reserved_rows_where_there_are_any(tmp_path: Path) -> None:
    _, output = report(tmp_path, with_rows(tmp_path / "run", LOSSES, reserved=True), baseline=RIVALS)
    assert "(chosen on reserved rows)" in (output / "comparison.md").read_text()


@pytest.mark.slow
def test_a_comparison_draws_seeds_and_rows(tmp_path: Path) -> None:
    reports = {}
    for seed, shift in ((0, 0.0), (1, 0.01)):
        losses = LOSSES | {"merged": LOSSES["merged"] + shift}
        _, reports[f"seed={seed}"] = report(
            tmp_path, with_rows(tmp_path / f"run{seed}", losses), f"report{seed}", baseline=RIVALS, seed=seed)
    recipe = parse(Recipe, {"baseline": RIVALS, "upcycle": {"num_experts": 4, "num_experts_per_tok": 3}})
    made = run_stage(CompareStage(output=tmp_path / "all", recipe=recipe, grid=["seed=[0,1]"], reports=reports)).manifest
    found, = [item for item in json.loads((tmp_path / "all" / "comparison.json").read_text())["rivals"]
              if item["model"] == "sft_soup"]
    assert (found["seeds"], found["work"]) == (2, pytest.approx(2 / 2.02))
    assert found["mean"] == pytest.approx(0.0, abs=1e-3)
    low, high = found["interval"]  # a bootstrap of seeds that differ by 0.01 ends at 0.005, which two seeds stretch by sqrt(2)
    assert (low, high) == (pytest.approx(-0.005 * 2**0.5, abs=1e-3), pytest.approx(0.005 * 2**0.5, abs=1e-3))
    assert made.metrics["merged_over_sft_soup_held_out_nll_low"] == low
    assert "SFT soup of 2" in (tmp_path / "all" / "comparison.md").read_text()
