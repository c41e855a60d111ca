"""Experts in groups: shares sum to one, the prompt alone chooses the groups, and a single group equals the flat model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.factories import VOCABULARY, tokenizer
from tests.xft_core.stages.test_mix import grown_apart
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.moe.hierarchical import HierarchicalRouter, HierarchicalRouting, nodes_of
from xft_core.moe.low_rank import Parts
from xft_core.moe.prompts import GeneratedPrompts, PackedPrompts, PromptsUnknown, tell_prompts
from xft_core.recipe.sections import GenerateConfig, UpcycleConfig

IGNORED = -100


def config(**changes: Any) -> UpcycleConfig:
    return UpcycleConfig(**({"num_experts": 10, "num_experts_per_tok": 3, "expert_rank": 2, "groups": 3, "groups_per_tok": 2}
                            | changes))


def router(upcycle: UpcycleConfig, seed: int = 0) -> HierarchicalRouter:
    torch.manual_seed(seed)
    found = HierarchicalRouter(16, upcycle)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    return found


def packed(lengths: list[tuple[int, int]]) -> PackedPrompts:
    """Return prompts of examples with these numbers of prompt and response tokens, and two tokens of padding."""
    positions = torch.cat([*(torch.arange(sum(length)) for length in lengths), torch.zeros(2, dtype=torch.long)])
    labels = torch.cat([*(torch.cat([torch.full((prompt,), IGNORED), torch.ones(response, dtype=torch.long)])
                          for prompt, response in lengths), torch.full((2,), IGNORED)])
    return PackedPrompts(positions[None], labels[None])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), groups_per_tok=st.integers(1, 3), shared_expert=st.booleans(),
       normalization=st.sampled_from(["xft", "renormalize"]))
def test_all_shares_sum_to_one_and_each_group_has_its_own(
        seed: int, groups_per_tok: int, shared_expert: bool, normalization: Any) -> None:
    upcycle = config(groups_per_tok=groups_per_tok, shared_expert=shared_expert, normalization=normalization,
                     num_experts=9 + shared_expert, num_experts_per_tok=2 + shared_expert)
    routing, x_TD = router(upcycle, seed).eval(), torch.randn(11, 16)
    routing.prompts = packed([(3, 2), (1, 3)])
    found = routing(x_TD)
    nodes_TK, weight_TK = nodes_of(found, found.weight_TK, upcycle)
    ones_T = torch.ones(11)
    assert (weight_TK >= 0).all() and torch.allclose(weight_TK.sum(1), ones_T, atol=1e-6)
    assert torch.allclose(found.weight_TK.sum(1), ones_T, atol=1e-6)
    assert torch.allclose(found.logits_TR.exp().sum(1), ones_T, atol=1e-6)  # the probabilities of paths
    assert (nodes_TK.sort(1).values.diff(dim=1) > 0).all(), "a node twice"
    leaves_TK = nodes_TK[:, :2 * groups_per_tok]
    assert ((leaves_TK // 3).sort(1).values == (leaves_TK // 3).sort(1).values[:, ::2].repeat_interleave(2, 1)).all()
    if shared_expert:  # the group's own expert gets the rest, 1 - q of the group's share
        per_group_TG = found.weight_TK[:, :-1].unflatten(1, (groups_per_tok, 2)).sum(-1)
        largest_TG3 = torch.softmax(routing.logits(x_TD)[0].unflatten(1, (3, 3)), -1).amax(-1)
        q_TG = largest_TG3.gather(1, leaves_TK[:, ::2] // 3)
        assert torch.allclose(weight_TK[:, -groups_per_tok:], per_group_TG * (1 - q_TG), atol=1e-6)
        assert torch.allclose(1 - found.weight_TK[:, -1], per_group_TG.sum(1), atol=1e-6)


@torch.no_grad()
def test_tokens_of_a_response_do_not_move_the_groups() -> None:
    upcycle = config()
    routing, x_TD = router(upcycle).eval(), torch.randn(11, 16)
    routing.prompts = packed([(3, 2), (1, 3)])
    before = routing(x_TD)
    changed_TD = x_TD.clone()
    changed_TD[[3, 4, 6, 7, 8]] = torch.randn(5, 16)  # the responses
    after = routing(changed_TD)
    for example in ([0, 1, 2], [5]):
        assert torch.equal(before.expert_index_TK[example], after.expert_index_TK[example])
        assert torch.equal(before.weight_TK[example], after.weight_TK[example])
    assert torch.equal(before.weight_TK[:, -1], after.weight_TK[:, -1])  # 1 - m, everywhere
    groups_TG = (before.expert_index_TK[:, :-1:2] - 1) // 3
    assert torch.equal(groups_TG, (after.expert_index_TK[:, :-1:2] - 1) // 3)
    assert len(before.weight_TK[:5, -1].unique()) == 1 != len(before.weight_TK[:9, -1].unique())
    changed_TD[0] += 1.0
    assert not torch.equal(routing(changed_TD).weight_TK[:5, -1], before.weight_TK[:5, -1])
    assert torch.equal(routing(changed_TD).weight_TK[5:9, -1], before.weight_TK[5:9, -1])  # the other example's own prompt


def test_a_later_turn_without_labels_is_no_prompt() -> None:
    labels = torch.tensor([[IGNORED, IGNORED, 5, IGNORED, 6, IGNORED]])
    assert PackedPrompts(torch.arange(6)[None], labels).in_prompt_T.tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("family", ["llama", "phi3", "starcoder2"])
@pytest.mark.parametrize("shared_expert", [True, False])
@torch.no_grad()
def test_one_group_is_flat_routing_on_weights_with_the_groups_change(
        family: str, shared_expert: bool, tmp_path: Path) -> None:
    """In fp64. Without a shared expert a group has no expert of its own, but its change is still in every expert."""
    options: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 3, "expert_rank": 2, "shared_expert": shared_expert}
    grouped = grown_apart(tmp_path / "grouped", family, groups=1, group_rank=3, **options)
    flat = grown_apart(tmp_path / "flat", family, **options)
    weights = load_file(grouped / "model.safetensors")
    tensors = {name: weights[name] for name in load_file(flat / "model.safetensors")}
    save_file(tensors, flat / "model.safetensors", {"format": "pt"})
    models = [load_model(directory, torch.float64) for directory in (grouped, flat)]
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    for one, other in zip(*map(moe_blocks, models), strict=True):
        base = other.shared_expert if shared_expert else other.base
        for name, parameter in list(one.experts.named_parameters()):
            if name.startswith("group_") and not name.endswith("_a"):
                layer = name.removeprefix("group_").rpartition("_")[0]
                linear = getattr(base, layer)
                if name.endswith("_bias"):
                    linear.bias += parameter[0]
                else:
                    linear.weight += 16 / 3 * parameter[0] @ getattr(one.experts, f"group_{layer}_a")[0]
    tell_prompts(models[0], GeneratedPrompts(torch.ones_like(ids)))
    found, wanted = (model(input_ids=ids).logits for model in models)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()  # routing weights are in fp32


@pytest.mark.parametrize("family", ["llama", "starcoder2"])
@torch.no_grad()
def test_shares_of_one_path_merge_to_its_expert(family: str, tmp_path: Path) -> None:
    """Compare with W_s + B_g A_g + B_gi A_gi, computed from the tensors themselves."""
    directory = grown_apart(tmp_path, family, num_experts=7, num_experts_per_tok=3, expert_rank=2, groups=2, group_rank=3)
    experts = moe_blocks(load_model(directory, torch.float64))[1]
    with MixtureReader(directory) as mixture:
        for tensor in mixture.expert_tensors(1):
            layer, kind = tensor.name.split(".")[-2:]
            shared = getattr(getattr(experts.shared_expert, layer), kind)
            for expert in range(6):
                wanted = shared.clone()
                for prefix, part, scale in (("", expert, 16 / 2), ("group_", expert // 3, 16 / 3)):
                    if kind == "bias":
                        wanted += getattr(experts.experts, f"{prefix}{layer}_bias")[part]
                        continue
                    a, b = (getattr(experts.experts, f"{prefix}{layer}_{side}")[part] for side in "ab")
                    wanted += scale * b @ a
                one_hot_N = torch.eye(7, dtype=torch.float64)[expert + 1]
                merged = torch.cat([
                    block for _, block in mixture.mixed(tensor, one_hot_N, torch.float64, torch.device("cpu"))])
                assert (merged - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_nodes_have_their_parts() -> None:
    parts = Parts(config(num_experts=7, groups=2, groups_per_tok=1))
    assert parts.of_nodes == ((0, 6), (1, 6), (2, 6), (3, 7), (4, 7), (5, 7), (6,), (7,), ())
    assert parts.of_node_EP().sum(1).tolist() == [2.0] * 6 + [1.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("grouped")
    options: dict[str, Any] = {"num_experts": 7, "num_experts_per_tok": 3, "expert_rank": 2, "groups": 2}
    return load_model(grown_apart(root, **options), torch.float32)


@torch.no_grad()
def test_packed_examples_are_each_alone(model: Any) -> None:
    ids = torch.randint(3, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :4] = labels[0, 8:14] = IGNORED
    positions = torch.cat([torch.arange(8), torch.arange(12)])[None]
    tell_prompts(model, PackedPrompts(positions, labels))
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    for start, end in ((0, 8), (8, 20)):
        tell_prompts(model, PackedPrompts(positions[:, start:end], labels[:, start:end]))
        alone = model(input_ids=ids[:, start:end], use_cache=False).logits
        assert (alone - together[:, start:end]).abs().max() <= 1e-5


def test_answers_are_those_of_each_prompt_alone_and_of_no_cache(model: Any) -> None:
    """A prompt's groups are those of its first forward pass. Rows that have ended are removed from the batch."""
    words = tokenizer()
    prompts = [words(text)["input_ids"] for text in ("def f(x):\n", "def a_much_longer_name(x, y):\n    return x", "x")]
    completer = TransformersCompleter(model, words, GenerateConfig(max_new_tokens=12, precision="fp32"), ())
    together = completer.write(prompts, [12, 3, 9], seed=0)
    assert [len(row) for row in together] == [12, 3, 9] or any(row[-1] == 1 for row in together)
    for prompt, row in zip(prompts, together, strict=True):
        assert completer.write([prompt], [len(row)], seed=0)[0] == row
        ids = torch.tensor([prompt + row])
        labels = ids.clone()
        labels[:, :len(prompt)] = IGNORED
        with torch.no_grad():
            tell_prompts(model, PackedPrompts(torch.arange(ids.shape[1])[None], labels))
            logits = model(input_ids=ids, use_cache=False).logits
        assert logits[0, len(prompt) - 1:-1].argmax(-1).tolist() == row


def test_a_model_that_was_told_nothing_says_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_experts": 7, "num_experts_per_tok": 3, "expert_rank": 2, "groups": 2}
    found = load_model(grown_apart(tmp_path, **options), torch.float32)
    with pytest.raises(PromptsUnknown, match="the model was not told the prompt"):
        found(input_ids=torch.tensor([[1, 2, 3]]))


def test_gradients_reach_the_groups_router() -> None:
    upcycle = config()
    routing = router(upcycle)
    routing.prompts = packed([(3, 2), (1, 3)])
    found = routing(torch.randn(11, 16))
    assert isinstance(found, HierarchicalRouting)
    (nodes_of(found, found.weight_TK, upcycle)[1] * torch.randn(11, 7)).sum().backward()
    assert routing.group.weight.grad is not None and routing.group.weight.grad.abs().max() > 0
