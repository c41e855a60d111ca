"""Parameters and sizes computed from config.json alone match the model that transformers builds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from tests.factories import FAMILY_CONFIGS, dense_model, tiny_config
from xft_core.errors import CheckpointError
from xft_core.models.loading import load_model
from xft_core.models.upcycled import empty_moe, moe_blocks
from xft_core.moe.prompts import GeneratedPrompts, tell_prompts
from xft_core.planning.memory import layer_activations
from xft_core.planning.shape import find_config, read_shape, shape_of_config
from xft_core.recipe.sections import UpcycleConfig

SIZES: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
UPCYCLE = UpcycleConfig(num_experts=5, num_experts_per_tok=3)
LOW_RANK = UpcycleConfig(num_experts=5, num_experts_per_tok=3, expert_rank=4)
GROUPED = UpcycleConfig(num_experts=5, num_experts_per_tok=2, expert_rank=4, groups=2, groups_per_tok=2, group_rank=6)


def config_of(family: str, directory: Path) -> dict[str, Any]:
    changes = {name: value for name, value in FAMILY_CONFIGS[family].items() if name not in ("head_dim", "sliding_window")}
    sizes = SIZES if family != "gpt_neox" else {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    AutoConfig.for_model(family, **(sizes | changes)).save_pretrained(directory)
    content: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return content


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_parameters_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    content = config_of(family, tmp_path)
    shape = read_shape(tmp_path / "config.json")
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content))
        moes = [(config, empty_moe(content, config, torch.float32)) for config in (UPCYCLE, LOW_RANK, GROUPED)]
    for predicted, model in ((shape.parameters, dense), *((shape.moe_parameters(config), moe) for config, moe in moes)):
        exact = sum(parameter.numel() for parameter in model.parameters())
        assert 0.998 * exact <= predicted <= exact
    for config, moe in moes:
        assert shape.largest_matrix(config) == max(parameter.numel() for parameter in moe.parameters())
        if config.expert_rank is not None:
            added = sum(
                parameter.numel() for name, parameter in moe.named_parameters()
                if ".experts." in name and not name.endswith("_bias"))
            assert shape.num_layers * shape.low_rank(config) == added


@pytest.mark.parametrize("family", ["llama", "phi3", "starcoder2"])
@pytest.mark.parametrize("config", [LOW_RANK, GROUPED, UpcycleConfig(
    num_experts=4, num_experts_per_tok=2, expert_rank=3, shared_expert=False)])
def test_work_and_memory_of_low_rank_experts_are_those_of_a_block(family: str, config: UpcycleConfig, tmp_path: Path) -> None:
    """Compare products with torch's count, and memory with the bytes that a block keeps for its backward pass."""
    block = moe_blocks(empty_moe(config_of(family, tmp_path), config, torch.float32))[0].train()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    shape = read_shape(tmp_path / "config.json")
    x_1SD = torch.randn(1, 64, SIZES["hidden_size"], requires_grad=True)
    tell_prompts(block, GeneratedPrompts(torch.ones(1, 64)))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[:1] == (64,):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    def in_place_flop(onto: torch.Size, left: torch.Size, right: torch.Size, **_: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    in_place: dict[Any, Any] = {torch.ops.aten.addmm_: in_place_flop}  # torch does not count these by itself
    counting = FlopCounterMode(display=False, custom_mapping=in_place)
    with counting as counted, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x_1SD)
    of_layer = (shape.forward_flops(0, config) - 2 * shape.vocabulary * shape.hidden_size) / shape.num_layers
    assert counted.get_total_flops() / 64 == pytest.approx(of_layer - 2 * shape.attention, rel=0.005)
    dense_ffn = (4 if shape.gated else 2) * shape.ffn_size * 4
    layer = layer_activations(shape, config, "fp32", 64) - layer_activations(shape, None, "fp32", 64) + dense_ffn
    assert sum(kept.values()) / 64 == pytest.approx(layer + 4 * shape.hidden_size, rel=0.05)  # plus its own input


@pytest.mark.parametrize("changes", [
    {"router": "hashed"}, {"router": "frozen"}, {"shared_gate": "token"}, {"shared_gate": "token", "shared_expert": False},
    {"router": "by_example", "shared_gate": "token"}, {"routing": "top_p", "target_active": 2.0}])
def test_parameters_of_every_router_are_those_of_the_model(changes: dict[str, Any], tmp_path: Path) -> None:
    upcycle = UpcycleConfig(**({"num_experts": 5, "num_experts_per_tok": 3} | changes))
    with torch.device("meta"):
        moe = empty_moe(config_of("llama", tmp_path), upcycle, torch.float32)
    exact = sum(item.numel() for name, item in moe.named_parameters() if ".router." in name)
    predicted = 3 * read_shape(tmp_path / "config.json").router(upcycle)
    assert predicted <= exact <= predicted + 3  # biases are not counted


def test_what_a_token_costs_is_what_the_routing_says() -> None:
    shape = shape_of_config(SIZES | {"model_type": "llama"})
    per_ffn = 2 * 3 * shape.ffn

    def ffns(training: bool, **changes: Any) -> float:
        upcycle = UpcycleConfig(**({"num_experts": 5, "num_experts_per_tok": 3} | changes))
        without = shape.forward_flops(0) - per_ffn + 2 * 3 * shape.router(upcycle)
        return (shape.forward_flops(0, upcycle, training) - without) / per_ffn

    for training in (True, False):
        assert ffns(training) == ffns(training, router="hashed") == pytest.approx(3)
        assert ffns(training, routing="top_p", target_active=2.5) == pytest.approx(2.5)
    assert ffns(True, router="random") == pytest.approx(3) and ffns(False, router="random") == pytest.approx(5)


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_fields_that_a_config_leaves_out_have_the_familys_defaults(family: str, tmp_path: Path) -> None:
    content = config_of(family, tmp_path)
    full = shape_of_config(content)
    for name in ("head_dim", "tie_word_embeddings"):
        without = {key: value for key, value in content.items() if key != name}
        default = AutoConfig.for_model(**without)
        if getattr(default, name, None) == content.get(name):
            assert shape_of_config(without) == full, name


def test_forward_flops_are_two_for_each_parameter_of_a_token_and_attention() -> None:
    shape = shape_of_config(SIZES | {"model_type": "llama"})
    without_attention = 2 * (shape.parameters - SIZES["vocab_size"] * SIZES["hidden_size"])
    assert shape.forward_flops(0) == without_attention
    assert shape.forward_flops(512) - without_attention == 3 * 2 * 2 * 512 * 1024
    more = shape.forward_flops(0, UPCYCLE) - without_attention
    assert more == 2 * 3 * (2 * shape.ffn + shape.router(UPCYCLE))


@pytest.mark.parametrize(("content", "message"), [
    ({"model_type": "bert"}, "A bert model cannot be upcycled"), ({}, "The model type 'None'"),
    ({"model_type": "llama"}, "no usable sizes to plan with"),
    (SIZES | {"model_type": "llama", "num_attention_heads": 0}, "no usable sizes to plan with"),
    ({"model_type": "xft_moe", "upcycle": {}}, "Plan with the dense model")])
def test_a_config_without_sizes_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        shape_of_config(content)


def test_where_a_config_is_looked_for(tmp_path: Path) -> None:
    assert find_config("demo:model") is not None
    (tmp_path / "config.json").write_text("{")
    assert find_config(str(tmp_path)) == find_config(str(tmp_path / "config.json")) == tmp_path / "config.json"
    assert find_config("owner/model-that-is-not-in-the-cache") is None
    with pytest.raises(CheckpointError, match=r"no config\.json in"):
        find_config(str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_shape(tmp_path / "config.json")


def test_weights_beside_the_config_say_what_is_stored(tmp_path: Path) -> None:
    """The config says float32 and tied, but the tensors are BF16 and include a separate head."""
    source = dense_model(tmp_path / "model", "qwen2", dtype="float32")
    assert read_shape(source / "config.json").tied and read_shape(source / "config.json").stored_bytes == 4
    weights = {name: item.to(torch.bfloat16) for name, item in load_file(source / "model.safetensors").items()}
    head = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights | {"lm_head.weight": head}, source / "model.safetensors", {"format": "pt"})
    shape = read_shape(source / "config.json")
    assert not shape.tied and shape.stored_bytes == 2
    exact = sum(item.numel() for item in load_model(source, torch.bfloat16).parameters())
    assert 0.98 * exact <= shape.parameters <= exact
    (source / "model.safetensors").unlink()
    assert read_shape(source / "config.json").tied


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "falcon", "gpt_bigcode", "glm"])
def test_the_shape_of_a_family_outside_the_table_is_that_of_its_modules(family: str) -> None:
    """Whatever config.json calls the sizes, and except for learned positions, biases and norms."""
    config = tiny_config(family, vocab_size=4000, max_position_embeddings=16)
    shape = shape_of_config(config.to_dict() | {"model_type": family})
    model = AutoModelForCausalLM.from_config(config)
    matrices = {id(item): item.numel() for name, item in model.named_parameters() if item.dim() == 2 and "wpe" not in name
                and "position" not in name}
    assert shape.parameters == pytest.approx(sum(matrices.values()), rel=0.002)
    assert shape.packs == (family not in ("opt", "bloom", "falcon"))
