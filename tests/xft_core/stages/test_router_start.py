"""A router's start by ridge regression: it separates the experts' rows, follows permuted experts, and keeps everything else."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.factories import dense_model
from tests.xft_core.stages.test_sft import ready  # noqa: F401  (a fixture)
from xft_core.data.rows import load_rows
from xft_core.files.digests import file_digest
from xft_core.models.config import decoder_layers
from xft_core.models.discovery import family_of
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import UpcycleStage
from xft_core.stages.configs.parts import OwnRows
from xft_core.stages.labelled_rows import LabelledRows, labelled_rows
from xft_core.stages.own_rows import own_rows
from xft_core.stages.router_start import ridge_weights
from xft_core.stages.run import run_stage
from xft_core.training.held_out import row_losses

MOE = UpcycleConfig(num_experts=3, num_experts_per_tok=2, experts_from="branches", router_start="ridge")
HALVES = {"1": OwnRows(part=(1, 2)), "2": OwnRows(part=(2, 2))}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("experts")
    return [dense_model(root / str(seed), seed=seed) for seed in (1, 2)]


def stage(output: Path, ready: Path, experts: list[Path], **more: object) -> UpcycleStage:  # noqa: F811
    fields = {"upcycle": MOE, "rows_of_experts": HALVES, "seed": 3} | more
    return UpcycleStage(
        output=output, model=str(ready / "dense"), data=ready / "data",
        experts={str(number): str(path) for number, path in enumerate(experts, start=1)}, **fields)  # type: ignore[arg-type]


def test_the_start_is_the_seeds_alone_and_is_what_the_routers_are(
        ready: Path, experts: list[Path], tmp_path: Path) -> None:  # noqa: F811
    made = run_stage(stage(tmp_path / "a", ready, experts)).manifest
    assert run_stage(stage(tmp_path / "b", ready, experts)).manifest.digest == made.digest
    rows = len(load_rows(ready / "data", "train"))
    assert made.metrics["router_start_rows"] == rows and made.metrics["router_start_rows_min"] == rows // 2
    labelled = labelled_rows(stage(tmp_path / "c", ready, experts), experts)
    weights = ridge_weights(load_model(ready / "dense", torch.float32), labelled)
    for block, weight_RD in zip(moe_blocks(load_model(tmp_path / "a", torch.float32)), weights, strict=True):
        assert torch.equal(block.router.hidden.weight, weight_RD)
        assert block.router.output is not None and torch.equal(block.router.output.weight, torch.eye(2))
    parts = [{tuple(part[index][0].tolist()) for index in range(len(part))}
             for part in (own_rows(ready / "data", own, 3) for own in HALVES.values())]
    assert not parts[0] & parts[1]


def test_permuting_experts_permutes_the_routers_rows(ready: Path) -> None:  # noqa: F811
    model, rows = load_model(ready / "dense", torch.float64), load_rows(ready / "data", "train")
    labels = [index % 3 for index in range(len(rows))]
    order = [2, 0, 1]
    weights = ridge_weights(model, LabelledRows([rows], [labels], 3))
    permuted = ridge_weights(model, LabelledRows([rows], [[order.index(label) for label in labels]], 3))
    for weight_RD, permuted_RD in zip(weights, permuted, strict=True):
        assert weight_RD.abs().max() > 1e-3
        assert (weight_RD[order] - permuted_RD).abs().max() <= 1e-5 * weight_RD.abs().max()


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow),
                                    pytest.param("opt", marks=pytest.mark.slow), pytest.param("bloom", marks=pytest.mark.slow)])
def test_rows_of_other_words_go_to_other_experts(family: str, ready: Path, tmp_path: Path) -> None:  # noqa: F811
    model = load_model(dense_model(tmp_path / "dense", family), torch.float32)
    rows = load_rows(ready / "data", "train").first(2)
    weight_RD = ridge_weights(model, LabelledRows([rows], [[0, 1]], 3))[0]
    assert torch.equal(weight_RD[2], torch.zeros_like(weight_RD[2]))  # no row has this label
    assert (weight_RD[0] + weight_RD[1]).abs().max() > 0  # with three experts each share is 1/3, so they do not cancel
    scores: list[torch.Tensor] = []
    known = family_of(model.config)
    module = decoder_layers(model, known)[0].get_submodule(known.block)
    module.register_forward_pre_hook(lambda _, given: scores.append(given[0].reshape(-1, given[0].shape[-1]) @ weight_RD.t()))
    for index in range(2):
        model(input_ids=rows[index][0][None])
    # d^T (G + rho)^-1 d > 0 for the difference d of the rows' means. Without a bias, similar rows guarantee no more.
    first_R, second_R = (item.mean(0) for item in scores)
    assert first_R[0] - first_R[1] > second_R[0] - second_R[1]


def test_a_row_goes_to_the_checkpoint_of_the_lowest_loss(
        ready: Path, experts: list[Path], tmp_path: Path) -> None:  # noqa: F811
    rows = load_rows(ready / "data", "train")
    losses = [[loss.nll for loss in row_losses(load_model(path, torch.float32), rows)] for path in experts]
    first = sum(a <= b for a, b in zip(*losses, strict=True))
    upcycle = MOE.model_copy(update={"experts_from": "checkpoints"})
    found = labelled_rows(stage(tmp_path / "a", ready, experts, upcycle=upcycle, rows_of_experts={}), experts)
    assert found.rows_of_experts == [first, len(rows) - first]


def test_at_random_is_what_it_was(
        ready: Path, experts: list[Path], tmp_path: Path) -> None:  # noqa: F811
    random = MOE.model_copy(update={"router_start": "random"})
    plain = stage(tmp_path / "a", ready, experts, upcycle=random, rows_of_experts={})
    assert set(plain.settings()) == {"seed", "upcycle"} and "router_start" not in plain.settings()["upcycle"]
    assert "data" not in plain.inputs()
    run_stage(plain)
    run_stage(stage(tmp_path / "b", ready, experts))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert {name for name in a if not torch.equal(a[name], b[name])} == {name for name in a if name.endswith(
        ("router.hidden.weight", "router.output.weight"))}
    assert file_digest(tmp_path / "a" / "config.json") != file_digest(tmp_path / "b" / "config.json")


@pytest.mark.parametrize("start", ["ridge", "trained"])
def test_what_has_no_labels_or_no_logits_is_refused(start: str, tmp_path: Path) -> None:
    fusion = {"mode": "fusion", "shared_expert": False}
    for fields, expected in (
            ({"experts_from": "base"}, f"router_start is {start}, but experts_from is base, whose experts are all the same"),
            ({"experts_from": "branches", "router": "hashed"}, f"router_start is {start}, but the router hashed has no logits"),
            ({"experts_from": "branches", **fusion}, f"router_start is {start}, but mode fusion has no logits"),
            ({"experts_from": "branches", "expert_rank": 4}, "leave expert_rank empty"),
            ({"experts_from": "branches", "groups": 1}, "expert_rank is empty")):
        with pytest.raises(ValidationError, match=expected):
            UpcycleConfig(router_start=start, **fields)  # type: ignore[arg-type]
    upcycle = MOE.model_copy(update={"router_start": start})
    with pytest.raises(ValidationError, match=f"router_start is {start}, which needs data"):
        UpcycleStage(output=tmp_path, upcycle=upcycle)
