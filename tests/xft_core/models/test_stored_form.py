"""However a dense model is stored, every reader reads the same one: dense, upcycled, saved again, merged, plain transformers.

Otherwise, all of them refuse the directory.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.factories import VOCABULARY, dense_model, each_family
from tests.reference_model import reference_model
from xft_core.errors import CheckpointError
from xft_core.models.config import dense_config_of, upcycle_config_of
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import CheckpointReader, read_config
from xft_core.models.stored_form import head_and_embedding
from xft_core.models.upcycled import save_moe
from xft_core.recipe.sections import UpcycleConfig
from xft_core.reporting.inspect import describe
from xft_core.stages.import_reference import import_reference
from xft_core.stages.merge import merge
from xft_core.stages.upcycle import upcycle

Weights = dict[str, torch.Tensor]
IDS_BS = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
CONFIG = UpcycleConfig(num_experts=3, num_experts_per_tok=2)
READERS: dict[str, Callable[[Path, Path], object]] = {
    "dense": lambda source, target: load_model(source, torch.float32),
    "upcycle": lambda source, target: upcycle(source, target, CONFIG, seed=0)}


def changed(directory: Path, change: Callable[[Weights], Weights]) -> None:
    weights = change(load_file(directory / "model.safetensors"))
    save_file({name: item.contiguous().clone() for name, item in weights.items()}, directory / "model.safetensors", {
        "format": "pt"})


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@torch.no_grad()
def logits_of(directory: Path) -> torch.Tensor:
    return load_model(directory, torch.float32)(input_ids=IDS_BS).logits


@torch.no_grad()
def plain_logits_of(directory: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(input_ids=IDS_BS).logits


def head_stored(directory: Path, how: str) -> None:
    """Change whether a tied checkpoint stores the head, the embedding, or both."""
    head, embedding = head_and_embedding(AutoModelForCausalLM.from_pretrained(directory))

    def change(weights: Weights) -> Weights:
        tensor = weights[embedding]
        if how == "head only":
            return {name: item for name, item in weights.items() if name != embedding} | {head: tensor}
        return weights | {head: tensor if how == "both" else torch.randn_like(tensor)}

    if how not in ("tied", "untied"):
        changed(directory, change)


def the_same_everywhere(source: Path, path: Path, tied: bool) -> None:
    expected = plain_logits_of(source)
    assert expected.std() > 0.05
    assert torch.equal(logits_of(source), expected)
    for store in ("once", "all"):
        moe = made(path / f"moe-{store}")
        upcycle(source, moe, CONFIG.model_copy(update={"store_experts": store}), seed=0)
        model = load_model(moe, torch.float32)
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
        with CheckpointReader(moe) as reader:
            dense_config = dense_config_of(reader)
        save_moe(model, made(path / f"again-{store}"), dense_config, upcycle_config_of(moe))
        merge(path / f"again-{store}", made(path / f"merged-{store}"), torch.full((2, 3), 1 / 3, dtype=torch.float64))
        for directory in (moe, path / f"again-{store}", path / f"merged-{store}"):
            assert (logits_of(directory) - expected).abs().max() <= 1e-5, directory
        assert (plain_logits_of(path / f"merged-{store}") - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("how", ["tied", "untied", "both", "own head", "head only"])
@pytest.mark.parametrize("family", each_family())
def test_tying_is_that_of_the_tensors(family: str, how: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", family, tie_word_embeddings=how != "untied")
    head_stored(source, how)
    the_same_everywhere(source, tmp_path, tied=how in ("tied", "both", "head only"))


@pytest.mark.parametrize("names", ["without prefix", "prefix twice", "head inside"])
@pytest.mark.parametrize("family", each_family())
def test_names_are_those_that_transformers_takes_them_for(family: str, names: str, tmp_path: Path) -> None:
    tied = names == "without prefix"
    source = dense_model(tmp_path / "dense", family, tie_word_embeddings=tied)
    prefix = {"gpt_neox": "gpt_neox.", "gpt2": "transformer.", "bloom": "transformer."}.get(family, "model.")

    def change(name: str) -> str:
        if names == "without prefix":
            return name.removeprefix(prefix)
        if names == "prefix twice":
            return prefix + name if name.startswith(prefix) else name
        return name if name.startswith(prefix) else f"{prefix}lm_head.weight"

    changed(source, lambda weights: {change(name): item for name, item in weights.items()})
    the_same_everywhere(source, tmp_path, tied)


def test_an_upcycled_model_made_before_tying_was_looked_at_is_read_right(tmp_path: Path) -> None:
    """Its config says tied, as in the dense model, although the head is stored too."""
    source = dense_model(tmp_path / "dense", "qwen2")
    head_stored(source, "own head")
    upcycle(source, made(tmp_path / "moe"), CONFIG, seed=0)
    config = read_config(tmp_path / "moe")
    assert config["dense_config"].pop("tie_word_embeddings") is False
    (tmp_path / "moe" / "config.json").write_text(json.dumps(config | {"dense_config": read_config(source)}))
    assert (logits_of(tmp_path / "moe") - plain_logits_of(source)).abs().max() <= 1e-5


def test_a_head_that_differs_only_beyond_bf16_is_a_head_of_its_own_in_every_dtype(tmp_path: Path) -> None:
    """transformers compares rounded weights, so whether it ties them would depend on the dtype it loads them in."""
    source = dense_model(tmp_path / "dense", "qwen2")
    changed(source, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * (1 + 1e-6)})
    for dtype in (torch.float32, torch.bfloat16):
        assert load_model(source, dtype).config.tie_word_embeddings is False


@pytest.mark.parametrize("how", ["both", "head only", "own head"])
def test_the_references_models_are_tied_as_their_tensors_are(how: str, tmp_path: Path) -> None:
    source = reference_model(tmp_path / "reference", tie_word_embeddings=True)
    import_reference(source, made(tmp_path / "plain"), 10000.0)
    expected = logits_of(tmp_path / "plain")
    weights = load_file(source / "model.safetensors")
    head = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = head * -1 if how == "own head" else head.clone()
    if how == "head only":
        del weights["model.embed_tokens.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    import_reference(source, made(tmp_path / "imported"), 10000.0)
    sign = -1 if how == "own head" else 1
    assert (sign * logits_of(tmp_path / "imported") - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("change", "message"), [
    (lambda name: f"_orig_mod.{name}", r"begin with '_orig_mod\.'"), (lambda name: f"module.{name}", r"begin with 'module\.'"),
    (lambda name: f"base_model.model.{name}", "comes from a wrapper around the model"),
    (lambda name: name.replace("embed_tokens", "wte"), "lacks 1 tensors, including 'model.embed_tokens.weight'"),
    (lambda name: name.replace("layers.1.", "layers.2."), "lacks .*layers.1|holds the tensors"),
    (lambda name: name.replace("layers", "h"), "lacks 18 tensors, including 'model.layers.0")])
def test_names_that_transformers_does_not_take_are_refused_with_the_reason(
        change: Callable[[str], str], message: str, read: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    changed(source, lambda weights: {change(name): item for name, item in weights.items()})
    target = made(tmp_path / "moe")
    with pytest.raises(CheckpointError, match=message):
        READERS[read](source, target)
    assert not any(target.iterdir())


@pytest.mark.parametrize("read", READERS)
def test_a_tensor_that_is_stored_under_two_names_is_refused(read: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    changed(source, lambda weights: weights | {"norm.weight": weights["model.norm.weight"] + 1})
    with pytest.raises(CheckpointError, match=r"holds 'model\.norm\.weight' twice, as 'model\.norm\.weight' and"):
        READERS[read](source, made(tmp_path / "moe"))


def sharded(directory: Path, factor: float = 1.0, write_index: bool = True) -> Path:
    """Add shards with an index to a model directory, their tensors multiplied by ``factor``."""
    weights = {name: item * factor for name, item in load_file(directory / "model.safetensors").items()}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {name: names[number % 2] for number, name in enumerate(sorted(weights))}
    for shard in names:
        save_file({name: weights[name] for name in weights if weight_map[name] == shard}, directory / shard, {"format": "pt"})
    if write_index:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def two_models(directory: Path) -> None:
    sharded(directory, 2.0)


def adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")


def named_in_config(directory: Path) -> None:
    save_file({"x": torch.zeros(1)}, directory / "other.safetensors", {"format": "pt"})
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_weights": "other.safetensors"}))


def distributed(directory: Path) -> None:
    save_file({"x": torch.zeros(1)}, directory / "shard-00000-model-00001-of-00001.safetensors")


def twice_in_shards(directory: Path) -> None:
    sharded(directory)
    shard = directory / "model-00002-of-00002.safetensors"
    (directory / "model.safetensors").unlink()
    save_file(load_file(shard) | {"lm_head.weight": torch.zeros(VOCABULARY, 32)}, shard, {"format": "pt"})
    save_file(
        load_file(directory / "model-00001-of-00002.safetensors") | {"lm_head.weight": torch.ones(VOCABULARY, 32)},
        directory / "model-00001-of-00002.safetensors", {"format": "pt"})


def index_of_other_shards(directory: Path) -> None:
    sharded(directory)
    (directory / "model.safetensors").unlink()
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    one, other = sorted(set(index["weight_map"].values()))
    index["weight_map"]["lm_head.weight"] = other if index["weight_map"]["lm_head.weight"] == one else one
    path.write_text(json.dumps(index))


def only_a_variant(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model.fp16.safetensors")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("change", "message"), [
    (two_models, r"holds two models: model\.safetensors, and .* Delete model\.safetensors to keep the shards"),
    (adapter, "is an adapter"), (named_in_config, "transformers_weights: 'other.safetensors'"),
    (distributed, "distributed checkpoint"), (twice_in_shards, "holds 'lm_head.weight' twice"),
    (index_of_other_shards, "the index does not belong to these shards"), (only_a_variant, "has model.fp16.safetensors")])
def test_directories_that_could_be_read_in_two_ways_are_refused(
        change: Callable[[Path], None], message: str, read: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    change(source)
    with pytest.raises(CheckpointError, match=message):
        READERS[read](source, made(tmp_path / "moe"))


def variants_beside(directory: Path) -> None:
    """Add weights that nobody reads, because transformers reads them only when asked for by name."""
    for name in ("model.fp16.safetensors", "consolidated.safetensors", "model-00003-of-00003.safetensors"):
        save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, directory / name, {"format": "pt"})
    (directory / "pytorch_model.bin").write_bytes(b"pickled")
    for name in ("pytorch_model.bin.index.json", "consolidated.safetensors.index.json"):
        (directory / name).write_text('{"metadata": {}, "weight_map": {"a": "consolidated.safetensors"}}')


def an_index_of_the_single_file(directory: Path) -> None:
    names = load_file(directory / "model.safetensors")
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}))


def a_tensor_that_the_index_leaves_out(directory: Path) -> None:
    """Remove a tensor from the index; transformers still reads everything in the shards."""
    sharded(directory)
    (directory / "model.safetensors").unlink()
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("change", [variants_beside, an_index_of_the_single_file, a_tensor_that_the_index_leaves_out])
def test_what_is_beside_the_weights_changes_no_reader(change: Callable[[Path], None], tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    expected = plain_logits_of(source)
    change(source)
    assert torch.equal(plain_logits_of(source), expected)
    the_same_everywhere(source, tmp_path, tied=False)
    assert not list((tmp_path / "moe-all").glob("*.index.json"))
    count = sum(item.numel() for item in AutoModelForCausalLM.from_pretrained(source).state_dict().values())
    assert f"{count:,} in 21 tensors" in describe(source)


def test_the_merged_model_says_a_dtype_that_holds_all_its_tensors(tmp_path: Path) -> None:
    """Plain transformers loads every tensor in the dtype of the config, which would round norms in fp32."""
    source = dense_model(tmp_path / "dense")
    changed(source, lambda weights: {
        name: item if "norm" in name else item.to(torch.bfloat16) for name, item in weights.items()})
    upcycle(source, made(tmp_path / "moe"), CONFIG, seed=0)
    merge(tmp_path / "moe", made(tmp_path / "merged"), torch.full((2, 3), 1 / 3, dtype=torch.float64))
    assert read_config(tmp_path / "merged")["dtype"] == "float32"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(plain.model.norm.weight, load_file(source / "model.safetensors")["model.norm.weight"])


def test_an_upcycled_model_that_computes_something_else_is_never_called_done(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dense_model(tmp_path / "dense")

    def exchanged(reader: CheckpointReader, *others: Any) -> list[Any]:
        plans = expert_plans(reader, *others)
        by_name = {plan.name: plan for plan in plans}
        gate, up = (f"{others[1].block_name(others[2])}.shared_expert.{name}.weight" for name in ("gate_proj", "up_proj"))
        swapped = {gate: by_name[up].parts, up: by_name[gate].parts}
        return [type(plan)(plan.name, plan.shape, plan.dtype, swapped.get(plan.name, plan.parts)) for plan in plans]

    from xft_core.stages import upcycle as module

    expert_plans = module._expert_plans
    monkeypatch.setattr(module, "_expert_plans", exchanged)
    with pytest.raises(CheckpointError, match="does not compute the same as"):
        upcycle(source, made(tmp_path / "moe"), CONFIG.model_copy(update={"store_experts": "all"}), seed=0)
