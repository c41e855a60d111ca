"""Low-rank experts as whole models, equal to models with full expert weights: merged, exported, trained and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.factories import VOCABULARY, each_family
from tests.xft_core.interrupted import interrupted_after
from tests.xft_core.stages.test_mix import grown_apart
from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError, RecipeError
from xft_core.families import FAMILIES
from xft_core.files.digests import file_digest
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.low_rank import LowRankExperts
from xft_core.recipe.load import parse
from xft_core.recipe.sections import (
    BaselineConfig,
    ChecksConfig,
    DataConfig,
    GenerateConfig,
    MergeConfig,
    Recipe,
    SftConfig,
    UpcycleConfig,
)
from xft_core.stages.configs import GenerateStage, MergeStage, MixStage, PrepareStage, SftStage, UpcycleStage
from xft_core.stages.merge import export_adapter, merge
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle
from xft_core.store.curves import MetricsLog, read_metrics
from xft_core.training.trainer import XftTrainer

FAST = SftConfig(
    epochs=1, batch_size=4, micro_batch_size=2, learning_rate=5e-3, precision="fp32", optimizer="adamw", checkpoint_steps=2,
    log_steps=1, warmup_steps=0)
LOW_RANK = {"expert_rank": 2}
GROUPED = {"num_experts": 7, "num_experts_per_tok": 3, "expert_rank": 2, "groups": 2, "group_rank": 3}


def shares(num_experts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.softmax(torch.randn(2, num_experts, dtype=torch.float64, generator=generator), -1)


def with_weights_made(source: Path, target: Path) -> Path:
    """Write the same model with a full FFN for every expert."""
    target.mkdir()
    with MixtureReader(source) as mixture:
        config = mixture.upcycle.model_copy(update={"expert_rank": None, "store_experts": "all"})
        upcycle(source.parent / "dense", target, config, seed=0)
        weights = load_file(target / "model.safetensors")
        for name in weights:
            if f".{mixture.family.mlp}.experts." not in name and ".shared_expert." not in name:
                weights[name] = mixture.reader.get(name)
        for layer in range(2):
            tensors = {tensor.name: tensor for tensor in mixture.expert_tensors(layer)}
            mlp = mixture.family.mlp_name(layer)
            if config.shared_expert:
                for name, tensor in tensors.items():
                    weights[name.replace(f"{mlp}.", f"{mlp}.shared_expert.")] = tensor.of_expert(0)
            has_bias = f"{mlp}.{mixture.family.down}.bias" in tensors
            for stacked, sources in mixture.family.expert_sources(has_bias).items():
                weights[f"{mlp}.experts.{stacked}"] = torch.stack([
                    torch.cat([tensors[f"{mlp}.{item}"].of_expert(expert) for item in sources])
                    for expert in range(int(config.shared_expert), config.num_experts)])
    save_file({name: item.contiguous() for name, item in weights.items()}, target / "model.safetensors", {"format": "pt"})
    return target


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("family", each_family(FAMILIES))
@pytest.mark.parametrize("shared_expert", [True, False])
def test_the_model_is_that_of_experts_whose_weights_are_made(family: str, shared_expert: bool, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, family, shared_expert=shared_expert, **LOW_RANK)
    made = load_model(with_weights_made(directory, tmp_path / "made"), torch.float64)
    found, wanted = logits(load_model(directory, torch.float64)), logits(made)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()  # the full weights are rounded to fp32
    other = logits(load_model(tmp_path / "dense", torch.float64))
    assert (found - other).abs().max() > 1e-3


@pytest.mark.parametrize("family", each_family(FAMILIES))
@pytest.mark.parametrize("options", [LOW_RANK, {"shared_expert": False, **LOW_RANK}, GROUPED], ids=["flat", "base", "groups"])
def test_the_merge_and_its_gradient_are_those_of_the_experts(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, family, **options)
    (tmp_path / "merged").mkdir()
    number = options.get("num_experts", 4)
    weight_LN = shares(number)
    merge(directory, tmp_path / "merged", weight_LN)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    with MixtureReader(directory) as mixture:
        for layer in range(2):
            for tensor in mixture.expert_tensors(layer):
                experts = torch.stack([stack[0] for stack in tensor.stacks()]).double()
                assert experts.shape == (number, *tensor.shape) and tensor.dtype == torch.float32
                assert torch.equal(tensor.of_expert(2).double(), experts[2])
                mixed = torch.tensordot(weight_LN[layer], experts, 1)
                assert (merged[tensor.name].double() - mixed).abs().max() <= 1e-6 * mixed.abs().max()
                assert (experts[1] - experts[2]).abs().max() > 1e-2
                gradient = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                found_N = mixture.gradient(tensor, gradient)
                wanted_N = (experts * gradient).flatten(1).sum(1)
                assert ((found_N - found_N[0]) - (wanted_N - wanted_N[0])).abs().max() <= 1e-5 * wanted_N.abs().max()


@pytest.mark.parametrize("family", each_family(FAMILIES))
@pytest.mark.parametrize("options", [{}, {"shared_expert": False}, {"groups": 1, "num_experts": 3, "num_experts_per_tok": 2}])
def test_an_untouched_upcycle_merges_back_to_the_dense_weights_exactly(
        family: str, options: dict[str, Any], tmp_path: Path) -> None:
    grown_apart(tmp_path, family)
    config = UpcycleConfig(**({"num_experts": 4, "num_experts_per_tok": 3, "expert_rank": 2} | options))
    for name in ("untouched", "merged"):
        (tmp_path / name).mkdir()
    upcycle(tmp_path / "dense", tmp_path / "untouched", config, seed=0)
    merge(tmp_path / "untouched", tmp_path / "merged", shares(config.num_experts))
    with CheckpointReader(tmp_path / "dense") as dense, CheckpointReader(tmp_path / "merged") as merged:
        assert dense.names() == merged.names()
        assert all(torch.equal(dense.get(name), merged.get(name)) for name in dense.names())


@pytest.mark.parametrize(("family", "options"), [
    ("llama", LOW_RANK), ("phi3", {"shared_expert": False, **LOW_RANK}), ("starcoder2", LOW_RANK), ("gpt_neox", GROUPED)])
def test_the_adapter_is_the_merge_for_peft(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, family, **options)
    (tmp_path / "merged").mkdir()
    weight_LN = shares(options.get("num_experts", 4))
    merge(directory, tmp_path / "merged", weight_LN)
    export_adapter(directory, tmp_path / "merged", weight_LN)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "shared_weights")
    with MixtureReader(directory) as mixture:
        first = next(mixture.expert_tensors(0))
        assert torch.equal(base.state_dict()[first.name], mixture.reader.get(first.stored_shared))  # type: ignore[attr-defined]
    before = logits(base.eval())
    model = PeftModel.from_pretrained(base, tmp_path / "merged" / "adapter").eval()
    wanted = logits(load_model(tmp_path / "merged", torch.float32))
    assert (before - wanted).abs().max() > 1e-3
    assert (logits(model) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    rank = json.loads((tmp_path / "merged" / "adapter" / "adapter_config.json").read_text())["r"]
    assert rank == (6 * 2 + 2 * 3 if "groups" in options else (4 - options.get("shared_expert", True)) * 2)


def test_experts_with_weights_of_their_own_have_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expert_rank is empty.*merge\.export_adapter off"):
        export_adapter(grown_apart(tmp_path), tmp_path, shares(4))
    with pytest.raises(ValueError, match=r"merge\.export_adapter is true, but upcycle\.expert_rank is empty"):
        Recipe(merge=MergeConfig(export_adapter=True))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create prepared data and two upcycled models."""
    root = tmp_path_factory.mktemp("low_rank")
    grown_apart(root)
    rows = [{"instruction": f"Add {i}", "response": f"def f(x):\n    return x + {i}"} for i in range(48)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(root / "data.jsonl"), max_length=160, held_out_rows=6)
    run_stage(PrepareStage(output=root / "data", model=str(root / "dense"), data=data))
    for name, options in (("flat", LOW_RANK | {"num_experts": 4, "num_experts_per_tok": 3}), ("groups", GROUPED)):
        run_stage(UpcycleStage(output=root / name, model=str(root / "dense"), upcycle=UpcycleConfig(**options)))
    return root


def stage(ready: Path, output: Path, model: str, **changes: Any) -> SftStage:
    sft = SftConfig(**(FAST.model_dump() | changes))
    return SftStage(output=output, model=str(ready / model), data=ready / "data", sft=sft)


@pytest.mark.parametrize("model", ["flat", pytest.param("groups", marks=pytest.mark.slow)])
@pytest.mark.parametrize("changes", [
    {"gradient_checkpointing": True}, *(pytest.param(changes, marks=pytest.mark.slow) for changes in (
        {"optimizer": "adafactor"}, {"precision": "bf16"}, {"precision": "bf16_mixed"}))],
    ids=lambda changes: "-".join(map(str, changes.values())))
def test_tuning_lowers_the_loss_and_saves_what_was_measured(
        model: str, changes: dict[str, Any], ready: Path, tmp_path: Path) -> None:
    metrics = run_stage(stage(ready, tmp_path / "tuned", model, **changes)).manifest.metrics
    assert metrics["held_out_nll"] < metrics["held_out_nll_before"] - 0.3
    tuned = load_model(tmp_path / "tuned", torch.float32)
    experts = moe_blocks(tuned)[1].experts
    assert isinstance(experts, LowRankExperts)
    assert all(parameter.abs().max() > 0 for parameter in experts.parameters())
    if "precision" not in changes:
        again = stage(ready, tmp_path / "again", "x").model_copy(update={"model": str(tmp_path / "tuned")})
        assert run_stage(again).manifest.metrics["held_out_nll_before"] == pytest.approx(metrics["held_out_nll"], abs=1e-6)


@pytest.mark.parametrize("model", ["flat", "groups"])
def test_an_interrupted_training_resumes_to_the_bit(
        model: str, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [stage(ready, tmp_path / name, model, max_steps=5, expert_learning_rate_factor=4) for name in "ab"]
    interrupted_after(3, stages[0], monkeypatch)
    for item in stages:
        run_stage(item)
    assert file_digest(tmp_path / "a" / "model.safetensors") == file_digest(tmp_path / "b" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["flat", "groups"])
def test_two_processes_train_as_one(model: str, ready: Path, tmp_path: Path) -> None:
    train_as_one(model, ready, tmp_path)


def train_as_one(model: str, ready: Path, tmp_path: Path, **more: Any) -> None:
    changes = {"packing": False, "max_steps": 3, "optimizer": "adafactor", "learning_rate": 1e-3, "micro_batch_size": 1}
    found = [run_stage(stage(ready, tmp_path / str(number), model, num_processes=number, **changes | more)).manifest
             for number in (1, 2)]
    assert found[0].key == found[1].key
    for name in ("held_out_nll", "train_loss"):
        assert found[1].metrics[name] == pytest.approx(found[0].metrics[name], abs=1e-4)


TOGETHER: dict[str, Any] = {"router_gradient": "dense", "diversity_weight": 1e-2, "balance": "bias"}


@pytest.mark.slow
def test_with_dense_gradient_diversity_and_bias_it_learns_and_resumes_to_the_bit(
        ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [stage(ready, tmp_path / name, "flat", **TOGETHER) for name in "ab"]
    interrupted_after(5, stages[0], monkeypatch)
    made = [run_stage(item).manifest for item in stages]
    assert made[0].digest == made[1].digest
    assert made[0].metrics["held_out_nll"] < made[0].metrics["held_out_nll_before"] - 0.3
    points = [point["metrics"] for point in read_metrics(tmp_path / "a" / "metrics.jsonl")]
    assert any(point.get("diversity_loss", 0) > 0 for point in points)
    bias_R = moe_blocks(load_model(tmp_path / "a", torch.float32))[0].router.balance_bias
    assert bias_R is not None and bias_R.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("model", "changes"), [
    ("flat", TOGETHER), ("flat", TOGETHER | {"balance": "loss", "balance_scope": "step"}),
    ("groups", {"diversity_weight": 1e-2})])
def test_two_processes_train_as_one_with_these_options_too(
        model: str, changes: dict[str, Any], ready: Path, tmp_path: Path) -> None:
    train_as_one(model, ready, tmp_path, **changes)


def test_experts_learn_at_a_rate_of_their_own(ready: Path, tmp_path: Path) -> None:
    model = load_model(ready / "flat", torch.float32)
    data = PackedRows(load_rows(ready / "data", "train"), 160, packing=True)
    sft = SftConfig(**(FAST.model_dump() | {"expert_learning_rate_factor": 10.0}))
    trainer = XftTrainer(model, data, sft, 0, tmp_path, MetricsLog(tmp_path / "metrics.jsonl"), ChecksConfig())
    rates = {id(parameter): group["lr"] for group in trainer.create_optimizer().param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(5e-2 if ".experts." in name else 5e-3), name
    assert BaselineConfig().applied_to(sft).expert_learning_rate_factor == 1.0



def test_the_curve_shows_the_rate_of_the_shared_weights(ready: Path, tmp_path: Path) -> None:
    run_stage(stage(ready, tmp_path / "tuned", "flat", max_steps=2, expert_learning_rate_factor=10, schedule="constant"))
    rates = [point["metrics"].get("learning_rate") for point in read_metrics(tmp_path / "tuned" / "metrics.jsonl")]
    assert [rate for rate in rates if rate is not None] == [pytest.approx(5e-3)] * 2


@pytest.mark.parametrize("model", ["flat", pytest.param("groups", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["learned", pytest.param("routing", marks=pytest.mark.slow)])
def test_mixing_merging_and_answers(method: Any, model: str, ready: Path, tmp_path: Path) -> None:
    """Run the stages in a row. The merged model's loss is the one that mixing measured."""
    run_stage(stage(ready, tmp_path / "tuned", model, expert_learning_rate_factor=4))
    config = MergeConfig(method=method, batch_size=4, micro_batch_size=2, precision="fp32", learning_rate=0.2, epochs=3)
    mixed = run_stage(MixStage(
        output=tmp_path / "mix", model=str(tmp_path / "tuned"), data=ready / "data", merge=config)).manifest.metrics
    made = run_stage(MergeStage(
        output=tmp_path / "merged", model=str(tmp_path / "tuned"), coefficients=tmp_path / "mix", data=ready / "data",
        export_adapter=True)).manifest
    assert made.metrics["held_out_nll"] == pytest.approx(mixed["held_out_nll_merged"], abs=1e-5)
    assert mixed["movement_max"] > 1e-4
    assert {"adapter/adapter_model.safetensors", "shared_weights/config.json"} <= {entry.path for entry in made.files}
    if method == "learned":
        assert mixed["held_out_nll_merged"] < mixed["held_out_nll_uniform"]
        generate = GenerateConfig(max_new_tokens=6, batch_size=4, precision="fp32")
        run_stage(GenerateStage(output=tmp_path / "samples", model=str(tmp_path / "tuned"), max_problems=6, generate=generate))


@pytest.mark.parametrize(("changes", "message"), [
    (["upcycle.groups=2"], "expert_rank is empty"), (["upcycle.expert_rank=4", "upcycle.groups=2"], "does not divide the 7"),
    (["upcycle.expert_rank=4", "upcycle.groups=7"], "a group has 1 experts plus the shared one"),
    (["upcycle.expert_rank=4", "upcycle.num_experts=7", "upcycle.groups=2", "upcycle.groups_per_tok=3",
      "upcycle.num_experts_per_tok=3"], "groups_per_tok is 3, more than groups"),
    (["upcycle.expert_rank=4", "upcycle.num_experts=7", "upcycle.groups=2", "upcycle.num_experts_per_tok=3",
      "upcycle.normalization=none"], "must sum to one"),
    (["upcycle.expert_rank=4", "upcycle.num_experts=7", "upcycle.groups=2", "upcycle.num_experts_per_tok=3",
      "evaluate.lm_eval_tasks=[mmlu]"], "lm-eval does not identify the prompt")])
def test_options_that_do_not_fit_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(Recipe, {}, changes)


def test_families_know_their_own_names() -> None:
    """No stacked parameter of full experts has the name of a low-rank weight."""
    for name in FAMILIES:
        family = FAMILIES[name]
        low_rank = {f"{layer}_{kind}" for layer in (*family.up, family.down) for kind in "ab"}
        assert not low_rank & set(family.expert_sources(has_bias=True))
