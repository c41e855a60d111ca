"""Rows derived from a model's modules match the table, and unsupported models are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from tests.factories import FAMILY_CONFIGS, FOUND_CONFIGS, tiny_config
from xft_core.errors import CheckpointError
from xft_core.families import FAMILIES, Family
from xft_core.models import discovery
from xft_core.models.config import transformers_config
from xft_core.models.discovery import family_of
from xft_core.models.discovery.proof import prove
from xft_core.models.discovery.walk import propose


def found_row(config: PreTrainedConfig) -> Family:
    """Derive the row as family_of does, but without the table."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return prove(config, model, propose(model))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_is_the_row_of_the_table(family: str) -> None:
    found, row = found_row(tiny_config(family)), FAMILIES[family]
    for name in ("up", "down", "gated", "activation", "layers", "mlp", "renamed", "transposed", "adds_residual"):
        assert getattr(found, name) == getattr(row, name), name
    assert found.packs and found.attends_by_example == (family != "gemma2")
    assert found.dropout == ("residual_dropout" if family == "starcoder2" else "")
    assert found.plain_head or family in ("gemma2", "gemma3_text")  # gemma3_text caps its logits where the config says so


@pytest.mark.parametrize("family", FOUND_CONFIGS)
def test_a_large_model_has_the_row_of_a_tiny_one(family: str) -> None:
    """For transformers' default config, mostly with billions of parameters, the proof uses a separate small model."""
    changes = {"head_dim": 64, "num_key_value_heads": 8} if family == "nemotron" else {}
    large = found_row(AutoConfig.for_model(family, **changes))
    tiny = found_row(tiny_config(family))
    assert large.layers == tiny.layers and large.up == tiny.up and large.dropout == tiny.dropout and large.packs == tiny.packs


def test_the_rows_of_each_kind_of_ffn() -> None:
    rows = {family: family_of(tiny_config(family)) for family in ("gpt2", "opt", "bloom", "glm", "nemotron", "cohere")}
    assert rows["gpt2"].transposed and rows["gpt2"].dropout == "dropout"
    assert rows["opt"].mlp == "" and rows["opt"].block == "fc1" and rows["opt"].dropout == "" and not rows["opt"].packs
    assert rows["bloom"].adds_residual and rows["bloom"].dropout == "hidden_dropout" and not rows["bloom"].packs
    assert rows["glm"].gated and rows["glm"].up == ("gate_up_proj",)
    assert not rows["nemotron"].gated and rows["cohere"].gated and not rows["cohere"].plain_head


def test_a_row_is_of_a_config_and_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not family_of(tiny_config("granite", logits_scaling=3.0)).plain_head
    assert family_of(tiny_config("granite", logits_scaling=1.0)).plain_head
    monkeypatch.setattr(discovery, "prove", lambda *_: pytest.fail("proved again"))
    config = tiny_config("granite", logits_scaling=3.0)
    config.use_cache, config.eos_token_id = False, 5  # not part of the architecture
    assert not family_of(config).plain_head


def test_looking_for_a_row_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found_row(tiny_config("gpt2"))
    assert torch.equal(torch.rand(2), expected) and torch.is_grad_enabled()


@pytest.mark.parametrize(("model_type", "fields", "reason"), [
    ("t5", {}, "it is an encoder-decoder"),
    ("whisper", {}, "it is an encoder-decoder"),
    ("vit", {}, "transformers has no causal language model for it"),
    ("bert", {}, "no FFN was found in its .*layer"),
    ("mamba", {"hidden_size": 64, "num_hidden_layers": 2}, "no FFN was found|several FFNs|does not compute"),
    ("mixtral", {}, "it is already a mixture of experts"),
    ("qwen2_moe", {"num_hidden_layers": 2}, "it is already a mixture of experts"),
    ("olmoe", {"num_hidden_layers": 2}, "it is already a mixture of experts"),
    ("granitemoe", {"num_hidden_layers": 2}, "it is already a mixture of experts"),
    ("paligemma", {}, "its config.json has several parts"),
    ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "does not compute|different outputs in training|does not run"),
])
def test_what_cannot_fit_is_refused_with_the_reason(model_type: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"A {model_type} model cannot be upcycled: .*({reason})"):
        transformers_config({"model_type": model_type} | fields)


class Doubled(nn.Module):
    """An FFN that computes something beyond its linear layers and activation."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return twice the FFN."""
        y: torch.Tensor = 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


class DropsInside(Doubled):
    """An FFN with dropout between its linear layers."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__(mlp)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the FFN, with dropout of its F features."""
        y: torch.Tensor = self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))
        return y


@pytest.mark.parametrize(("kind", "reason"), [
    (Doubled, r"does not compute down\(act\(up\(x\)\)\).*as down_proj\(act_fn\(gate_proj\) \* up_proj\) logits differ by"),
    (DropsInside, r"drops elements \(dropout\) outside its output")])
def test_an_ffn_that_computes_more_is_not_proved(
        kind: type[Doubled], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.olmo import modeling_olmo

    original = modeling_olmo.OlmoMLP
    monkeypatch.setattr(modeling_olmo, "OlmoMLP", lambda config: kind(original(config)))
    monkeypatch.setattr(discovery, "_found", {})
    with pytest.raises(CheckpointError, match=reason):
        family_of(tiny_config("olmo"))


def test_several_ffns_in_a_layer_and_layers_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.olmo import modeling_olmo

    original = modeling_olmo.OlmoDecoderLayer

    class TwoFfns(original):  # type: ignore[misc,valid-type]
        def __init__(self, config: Any, layer_idx: int) -> None:
            super().__init__(config, layer_idx)
            self.second = modeling_olmo.OlmoMLP(config)

    class Wider(original):  # type: ignore[misc,valid-type]
        def __init__(self, config: Any, layer_idx: int) -> None:
            super().__init__(config, layer_idx)
            if layer_idx:
                self.mlp.up_proj = nn.Linear(config.hidden_size, 40, bias=False)

    for kind, reason in ((TwoFfns, "several FFNs each"), (Wider, "are not alike: the FFN of model.layers.1 differs")):
        monkeypatch.setattr(modeling_olmo, "OlmoDecoderLayer", kind)
        monkeypatch.setattr(discovery, "_found", {})
        with pytest.raises(CheckpointError, match=reason):
            family_of(tiny_config("olmo"))


def test_every_tiny_model_has_a_family_of_one_kind(tmp_path: Path) -> None:
    assert not set(FAMILY_CONFIGS) & set(FOUND_CONFIGS)
