"""A router's start by training: it learns the labels, changes W_1 alone, repeats bit for bit, and keeps the model's loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tests.factories import dense_model
from tests.xft_core.stages.test_router_start import MOE, experts, stage  # noqa: F401  (a fixture)
from tests.xft_core.stages.test_sft import changed, ready  # noqa: F401  (a fixture)
from xft_core.data.row_writing import Row
from xft_core.data.rows import load_rows, rows_of
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import SftStage, UpcycleStage
from xft_core.stages.labelled_rows import LabelledRows, labelled_rows
from xft_core.stages.router_start import ridge_weights
from xft_core.stages.router_training import train_routers
from xft_core.stages.run import run_stage, stage_key
from xft_core.stages.upcycle import upcycle
from xft_core.training.held_out import held_out_loss, take_routings

TRAINED = MOE.model_copy(update={"router_start": "trained"})
FOUR = UpcycleConfig(num_experts=4, num_experts_per_tok=3, experts_from="branches", router_start="trained")


def separable(number: int, rows: int = 64) -> LabelledRows:
    """Rows whose tokens tell their label: four tokens for each label, few enough for a linear router to tell apart. The first
    label has twice as many rows as the others."""
    generator = torch.Generator().manual_seed(0)
    labels = [index % (number + 1) % number for index in range(rows)]
    made = [Row(torch.randint(10 + 4 * label, 14 + 4 * label, (12,), generator=generator).tolist(), 4) for label in labels]
    return LabelledRows([rows_of(made)], [labels], number)


def mixture(root: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A Mixture-of-Experts of two different experts, whose routers know nothing: W_1 = 0 and W_2 = 1."""
    dense, *others = (dense_model(root / str(seed), family, seed=seed) for seed in range(3))
    (root / "moe").mkdir()
    upcycle(dense, root / "moe", TRAINED.model_copy(update=changes), 0, others, [torch.zeros(2, 32)] * 2)
    return load_model(root / "moe", dtype)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", *(
    pytest.param(family, marks=pytest.mark.slow) for family in ("gemma2", "gpt_neox", "opt", "bloom"))])
def test_the_routers_learn_the_labels_and_nothing_else_changes(family: str, tmp_path: Path) -> None:
    model, rows = mixture(tmp_path, family), separable(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = train_routers(model, rows, seed=0)
    assert found.loss_last < found.loss_first - 0.01
    assert found.accuracy > 0.9  # chance is 2/3, the share of the larger label
    names = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert names == {name for name in before if name.endswith("router.hidden.weight")} and len(names) == 2
    for block, weight_RD in zip(moe_blocks(model), found.weights, strict=True):
        assert torch.equal(block.router.hidden.weight, weight_RD)


@pytest.mark.parametrize("changes", [
    {"normalization": "none"}, {"normalization": "granite"}, {"router": "frozen"}, {"shared_gate": "token"},
    {"routing": "top_p", "target_active": 2.0}, {"shared_expert": False, "num_experts": 2}],
    ids=lambda changes: "-".join(changes))
def test_every_router_with_logits_can_be_trained(changes: dict[str, Any], tmp_path: Path) -> None:
    model = mixture(tmp_path, **changes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = train_routers(model, separable(2), seed=0)
    assert found.loss_last < found.loss_first
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "router.hidden" not in name)


def test_in_16_bits_the_routers_train_in_32(tmp_path: Path) -> None:
    model = mixture(tmp_path, dtype=torch.bfloat16)
    found = train_routers(model, separable(2), seed=0)
    assert found.loss_last < found.loss_first - 0.01 and found.accuracy > 0.9
    assert all(weight_RD.dtype == torch.float32 for weight_RD in found.weights)
    assert any(not torch.equal(weight_RD, weight_RD.bfloat16().float()) for weight_RD in found.weights)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_the_loss_is_half_that_of_responses_and_half_that_of_labels_with_experts_alike(tmp_path: Path) -> None:
    model, rows = mixture(tmp_path), separable(2, rows=8)
    assert len(set(rows.rows_of_experts)) == 2
    found = train_routers(model, rows, seed=0)
    by_label: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for index, label in enumerate(rows.labels[0]):
            for block in moe_blocks(model):
                block.keep_routing = True
            model(input_ids=rows.pieces[0][index][0][None])
            for routing in take_routings(model):
                target_TR = F.one_hot(torch.full((12,), label), 2).float()
                chance_TR = torch.sigmoid(routing.logits_TR)
                by_label[label].append(-(target_TR * chance_TR.log() + (1 - target_TR) * (1 - chance_TR).log()).mean())
    of_labels = sum(float(torch.stack(losses).mean()) for losses in by_label) / 2
    assert found.loss_last == pytest.approx(0.5 * held_out_loss(model, rows.pieces[0]).nll + 0.5 * of_labels, abs=1e-5)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_the_stage_trains_ridges_start_on_ridges_rows_and_repeats_it(
        checkpoints: bool, ready: Path, experts: list[Path], tmp_path: Path) -> None:  # noqa: F811
    changes = {"experts_from": "checkpoints"} if checkpoints else {}
    more: dict[str, object] = {"rows_of_experts": {}} if checkpoints else {}

    def run(name: str, start: str) -> UpcycleStage:
        return stage(tmp_path / name, ready, experts, upcycle=MOE.model_copy(update={"router_start": start, **changes}), **more)

    made = {start: run_stage(run(start, start)).manifest for start in ("random", "ridge", "trained")}
    assert run_stage(run("again", "trained")).manifest.digest == made["trained"].digest
    assert len({stage_key(run("key", start)) for start in made}) == 3
    ridge, trained = made["ridge"].metrics, made["trained"].metrics
    assert {name: trained[name] for name in ridge} == ridge
    assert trained["router_start_loss_last"] < trained["router_start_loss_first"]
    assert 0.5 < trained["router_start_accuracy"] <= 1
    labelled = [labelled_rows(run("rows", start), experts) for start in ("ridge", "trained")]
    assert labelled[0].labels == labelled[1].labels
    assert [[row.tolist() for row, _ in map(piece.__getitem__, range(len(piece)))] for piece in labelled[0].pieces] == [
        [row.tolist() for row, _ in map(piece.__getitem__, range(len(piece)))] for piece in labelled[1].pieces]
    files = {start: load_file(tmp_path / start / "model.safetensors") for start in made}

    def changed_from(start: str) -> set[str]:
        return {name for name, tensor in files["trained"].items() if not torch.equal(tensor, files[start][name])}

    hidden = {name for name in files["trained"] if name.endswith("router.hidden.weight")}
    assert changed_from("ridge") == hidden
    assert changed_from("random") == hidden | {name for name in files["trained"] if name.endswith("router.output.weight")}


def test_permuting_experts_permutes_the_routers_rows(tmp_path: Path) -> None:
    order, rows = [2, 0, 1], separable(3, rows=24)
    permuted = LabelledRows(rows.pieces, [[order.index(label) for label in rows.labels[0]]], 3)
    dense, *others = (dense_model(tmp_path / str(seed), seed=seed) for seed in range(4))
    found = []
    for labelled, of_order in ((rows, [0, 1, 2]), (permuted, order)):
        target = tmp_path / f"moe{of_order[0]}"
        target.mkdir()
        start = ridge_weights(load_model(dense, torch.float32), labelled)
        upcycle(dense, target, FOUR, 0, [others[expert] for expert in of_order], start)
        trained = train_routers(load_model(target, torch.float32), labelled, seed=0)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(start, trained.weights, strict=True))
        found.append(trained)
    assert found[0].loss_last == pytest.approx(found[1].loss_last, abs=1e-4)
    for weight_RD, permuted_RD in zip(found[0].weights, found[1].weights, strict=True):
        # Adam divides by the gradient's size, so it enlarges rounding where the gradient is nearly zero.
        assert (weight_RD[order] - permuted_RD).abs().max() <= 1e-2 * weight_RD.abs().max()


def test_equal_experts_are_the_model_and_checkpoints_lose_nothing(ready: Path, tmp_path: Path) -> None:  # noqa: F811
    dense = ready / "dense"
    same = {"upcycle": TRAINED.model_copy(update={"experts_from": "checkpoints"}), "rows_of_experts": {}}
    run_stage(stage(tmp_path / "same", ready, [dense, dense], **same))
    logits = [load_model(path, torch.float32)(input_ids=torch.arange(12)[None]).logits for path in (tmp_path / "same", dense)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5

    tuning = SftStage(output=tmp_path / "sft", model=str(dense), data=ready / "data", sft=changed(epochs=2), snapshots=2)
    run_stage(tuning)
    tuned = [tmp_path / "sft" / "snapshots" / number for number in "12"]
    fields = {"model": str(tmp_path / "sft"), "experts": {"1": str(tuned[0]), "2": str(tuned[1])}} | same
    run_stage(UpcycleStage(output=tmp_path / "moe", data=ready / "data", seed=3, **fields))  # type: ignore[arg-type]
    rows = load_rows(ready / "data", "held_out")
    first, second, moe = (held_out_loss(load_model(path, torch.float32), rows).nll for path in (*tuned, tmp_path / "moe"))
    assert moe <= (first + second) / 2 + 0.02
