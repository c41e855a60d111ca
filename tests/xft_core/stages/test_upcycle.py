"""Upcycling is the identity for every family and every router, and stored models load unchanged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.factories import FAMILY_CONFIGS, VOCABULARY, dense_model, each_family, tokenizer
from xft_core.errors import CheckpointError
from xft_core.families import FAMILIES
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import read_config
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.prompts import GeneratedPrompts, tell_prompts
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle

SUM_TO_ONE = [
    UpcycleConfig(num_experts=4, num_experts_per_tok=3, normalization="xft"),
    UpcycleConfig(num_experts=4, num_experts_per_tok=3, normalization="renormalize"),
    UpcycleConfig(num_experts=4, num_experts_per_tok=2, shared_expert=False),
    UpcycleConfig(num_experts=4, num_experts_per_tok=3, expert_rank=2),
    UpcycleConfig(num_experts=4, num_experts_per_tok=2, expert_rank=2, shared_expert=False),
    UpcycleConfig(num_experts=7, num_experts_per_tok=3, expert_rank=2, groups=2, groups_per_tok=2),
    UpcycleConfig(num_experts=6, num_experts_per_tok=1, expert_rank=2, groups=3, shared_expert=False),
    UpcycleConfig(num_experts=4, num_experts_per_tok=1, shared_expert=False),
    UpcycleConfig(num_experts=4, num_experts_per_tok=3, routing_temperature=0.1),
    UpcycleConfig(num_experts=4, num_experts_per_tok=3, shared_gate="token"),
    UpcycleConfig(num_experts=4, num_experts_per_tok=4, routing="top_p", target_active=2.5),
    UpcycleConfig(num_experts=4, num_experts_per_tok=3, routing="top_p", target_active=1.5, shared_expert=False),
    *(UpcycleConfig(num_experts=4, num_experts_per_tok=3, router=router)
      for router in ("frozen", "hashed", "random", "by_example")),
    *(UpcycleConfig(num_experts=4, num_experts_per_tok=1, shared_expert=False, router=router)
      for router in ("frozen", "hashed", "random", "by_example")),
    UpcycleConfig(num_experts=4, num_experts_per_tok=2, router="hashed", shared_gate="token", shared_gate_start=0.9),
]


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(directory: Path, input_ids: torch.Tensor) -> torch.Tensor:
    model = load_model(directory, torch.float32)
    tell_prompts(model, GeneratedPrompts(torch.ones_like(input_ids)))
    return model(input_ids=input_ids).logits


def test_every_family_of_the_table_has_a_tiny_model() -> None:
    assert set(FAMILY_CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", each_family())
def test_upcycling_is_the_identity_where_weights_sum_to_one(family: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", family)
    expected = logits_of(source, ids(2, 12))
    assert expected.abs().max() > 0.1
    for number, config in enumerate(SUM_TO_ONE):
        if family == "gpt2" and config.expert_rank is not None:
            with pytest.raises(CheckpointError, match="Conv1D layers, which low-rank experts do not support"):
                upcycle(source, _made(tmp_path / f"moe{number}"), config, seed=number)
            continue
        upcycle(source, _made(tmp_path / f"moe{number}"), config, seed=number)
        model = load_model(tmp_path / f"moe{number}", torch.float32)
        tell_prompts(model, GeneratedPrompts(torch.ones(2, 12)))
        for training in (False, True):
            with torch.no_grad():
                found = model.train(training)(input_ids=ids(2, 12), use_cache=False).logits
            assert (found - expected).abs().max() <= 1e-5, (config, training)


@pytest.mark.parametrize("family", each_family())
def test_without_normalization_the_scale_is_wrong(family: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", family)
    config = UpcycleConfig(num_experts=6, num_experts_per_tok=5, normalization="none")
    upcycle(source, _made(tmp_path / "moe"), config, seed=0)
    difference = (logits_of(tmp_path / "moe", ids(2, 12)) - logits_of(source, ids(2, 12))).abs().max()
    # A norm after the FFN cancels most of a wrong scale: there the error is small, but larger than rounding.
    is_normed_again = any("post_feedforward_layernorm" in name for name in load_file(source / "model.safetensors"))
    assert difference > (2e-5 if is_normed_again else 1e-2)


@pytest.mark.parametrize("family", each_family())
def test_experts_stored_once_and_written_out_are_the_same_model(family: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", family)
    states = []
    for store in ("once", "all"):
        config = UpcycleConfig(num_experts=4, num_experts_per_tok=3, store_experts=store)
        upcycle(source, _made(tmp_path / store), config, seed=3)
        states.append(load_model(tmp_path / store, torch.float32).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    once, everything = (sum(f.stat().st_size for f in (tmp_path / s).glob("*.safetensors")) for s in ("once", "all"))
    dense = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    assert dense < once < dense * 1.1 and everything > once


@pytest.mark.parametrize(("family", "config"), [
    *(pytest.param(*family.values, UpcycleConfig(num_experts=4, num_experts_per_tok=3), marks=family.marks)
      for family in each_family()),
    *(("llama", UpcycleConfig(num_experts=4, num_experts_per_tok=1, shared_expert=False, router=router))
      for router in ("hashed", "random", "by_example")),
    ("gpt_neox", UpcycleConfig(num_experts=4, num_experts_per_tok=4, routing="top_p", target_active=2.5))])
def test_generate_works_with_cache_and_left_padding(family: str, config: UpcycleConfig, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", family)
    upcycle(source, _made(tmp_path / "moe"), config, seed=0)
    model, tokens = load_model(tmp_path / "moe", torch.float32), tokenizer()
    generator = torch.Generator().manual_seed(0)
    for block in moe_blocks(model):  # so that it matters which expert a token goes to
        for parameter in block.experts.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    tokens.padding_side = "left"
    texts = ["def f(x):\n", "def a_much_longer_name(x, y):\n    return x"]
    batch = tokens(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    together = model.generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=2)[:, batch["input_ids"].shape[1]:]
    for row, text in enumerate(texts):
        single = tokens([text], return_tensors="pt", return_token_type_ids=False)
        alone = model.generate(**single, max_new_tokens=8, do_sample=False, pad_token_id=2)[0, single["input_ids"].shape[1]:]
        assert together[row, :len(alone)].tolist() == alone.tolist()
    uncached = model.generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=2, use_cache=False)
    assert uncached[:, batch["input_ids"].shape[1]:].tolist() == together.tolist()


@pytest.mark.parametrize("config", [config for config in SUM_TO_ONE if config.expert_rank is not None])
def test_parameters_of_low_rank_experts_are_counted(config: UpcycleConfig, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", "starcoder2")
    metrics = upcycle(source, _made(tmp_path / "moe"), config, seed=0)
    parameters = dict(load_model(tmp_path / "moe", torch.float32).named_parameters())
    assert metrics.parameters_total == sum(parameter.numel() for parameter in parameters.values())
    active_experts = config.num_experts_per_tok - config.shared_expert
    shares = {"group_": config.groups_per_tok / config.groups} if config.groups else {}
    shares[""] = (config.groups_per_tok if config.groups else 1) * active_experts / config.num_routed
    unused = sum(
        parameter.numel() * (1 - shares["group_" if ".group_" in name else ""])
        for name, parameter in parameters.items() if ".experts." in name)
    assert metrics.parameters_active == pytest.approx(metrics.parameters_total - unused)


def test_low_rank_experts_depend_on_the_seed_and_differ(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    config = UpcycleConfig(num_experts=4, num_experts_per_tok=3, expert_rank=2)
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        upcycle(source, _made(tmp_path / name), config, seed=seed)
        found.append(load_model(tmp_path / name, torch.float32).state_dict()["model.layers.0.mlp.experts.up_proj_a"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].abs().max() <= 32 ** -0.5 and not torch.equal(found[0][0], found[0][1])


def test_tied_embeddings_stay_tied_and_the_config_is_the_checkpoints_own(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense", "qwen2")
    upcycle(source, _made(tmp_path / "moe"), UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    model = load_model(tmp_path / "moe", torch.float32)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert read_config(tmp_path / "moe")["dense_config"] == read_config(source)


def test_plain_transformers_refuses_an_upcycled_directory(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    upcycle(source, _made(tmp_path / "moe"), UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    with pytest.raises((ValueError, KeyError), match="xft_moe"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "moe")


def test_the_router_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    config = UpcycleConfig(num_experts=4, num_experts_per_tok=3)
    routers = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)
        upcycle(source, _made(tmp_path / name), config, seed=seed)
        blocks = moe_blocks(load_model(tmp_path / name, torch.float32))
        routers.append(torch.cat([block.router.hidden.weight.flatten() for block in blocks]))
    assert torch.equal(routers[0], routers[1]) and not torch.equal(routers[0], routers[2])


def test_sharded_checkpoints_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dense_model(tmp_path / "dense")
    expected = logits_of(source, ids(1, 8))
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    monkeypatch.setattr("xft_core.models.safetensors_io.write_checkpoint.__defaults__", (20_000,))
    upcycle(tmp_path / "sharded", _made(tmp_path / "moe"), UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    assert len(list((tmp_path / "moe").glob("*.safetensors"))) > 2
    assert (logits_of(tmp_path / "moe", ids(1, 8)) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("model_type", "reason"), [
    ("t5", "it is an encoder-decoder.*gpt_neox, llama"), ("no_such_model", "'no_such_model' of config.json is not known to")])
def test_what_is_no_dense_decoder_is_refused_with_the_reason(model_type: str, reason: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    config = source / "config.json"
    config.write_text(config.read_text().replace('"llama"', f'"{model_type}"'))
    with pytest.raises(CheckpointError, match=reason):
        upcycle(source, _made(tmp_path / "moe"), UpcycleConfig(), seed=0)


def test_damaged_checkpoints_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        upcycle(tmp_path, _made(tmp_path / "moe"), UpcycleConfig(), seed=0)
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        upcycle(source, tmp_path / "moe", UpcycleConfig(), seed=0)
    with pytest.raises(CheckpointError, match="truncated"):
        load_model(source, torch.float32)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        upcycle(source, tmp_path / "moe", UpcycleConfig(), seed=0)
    assert not any((tmp_path / "moe").iterdir())


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_hidden_layers": "three"}, "does not describe a llama model"),
    ({"hidden_size": 31}, "does not describe a llama model"),
    ({"num_attention_heads": 0}, "does not describe a llama model"),
    ({"hidden_act": "nonsense"}, "does not describe a llama model"),
    ({"num_hidden_layers": 1}, "tensors of 2 layers, but its config says 1"),
    ({"num_hidden_layers": 3}, "tensors of 2 layers, but its config says 3"),
    ({"model_type": 5}, "has no model_type")])
def test_a_config_that_is_not_the_checkpoints_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        upcycle(source, _made(tmp_path / "moe"), UpcycleConfig(), seed=0)
    assert not any((tmp_path / "moe").iterdir())


@pytest.mark.parametrize("changes", [{"vocab_size": 400}, {"intermediate_size": 64}])
def test_tensors_of_other_shapes_than_the_config_says_are_refused(changes: dict[str, int], tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match="shapes differ from its config"):
        upcycle(source, _made(tmp_path / "moe"), UpcycleConfig(), seed=0)
    with pytest.raises(CheckpointError, match="shapes differ from its config"):
        load_model(source, torch.float32)
    assert not any((tmp_path / "moe").iterdir())


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": "../b.safetensors"}}', "{"])
def test_an_index_that_is_none_is_refused(index: str, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "dense")
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="is not a checkpoint index"):
        upcycle(source, _made(tmp_path / "moe"), UpcycleConfig(), seed=0)


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory
