"""The Mixture-of-Experts with its modeling file: transformers and our code give the same results."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories import VOCABULARY, dense_model
from tests.xft_core.mixing.models import tuned
from xft_core.errors import CheckpointError
from xft_core.exports.code.export import export_code
from xft_core.models.loading import load_model
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.upcycle import upcycle

SCRIPT = Path(__file__).with_name("run_exported.py")
BIASED: dict[str, Any] = {"router_noise": False}  # one more upcycled model, which gets a balance bias
# Every routing that can be expressed, and families of each supported kind.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"normalization": "renormalize"}),
    ("llama", {"normalization": "none"}),
    ("llama", {"routing_temperature": 0.2}),
    ("llama", {"shared_gate": "token"}),
    ("llama", {"shared_expert": False}),
    ("llama", {"shared_expert": False, "num_experts_per_tok": 1}),
    ("llama", {"routing": "top_p", "target_active": 2.2}),
    ("llama", {"expert_rank": 2}),
    ("llama", {"expert_rank": 2, "shared_expert": False}),
    ("llama", {"router": "frozen", "store_experts": "all"}),
    ("llama", {"router": "random"}),
    ("llama", BIASED),
    ("llama", {"router": "by_example", "shared_expert": False}),
    ("mistral", {}), ("qwen2", {}), ("qwen3", {}), ("olmo2", {}), ("phi3", {}), ("smollm3", {}),
]


def with_bias(moe: Path) -> None:
    """Give the routers of an upcycled model the bias that ``sft.balance: bias`` leaves there."""
    path = moe / "model.safetensors"
    weights = load_file(path)
    for layer in range(2):
        weights[f"model.layers.{layer}.mlp.router.balance_bias"] = torch.tensor([0.3, -0.2, 0.1])
    save_file(weights, path, {"format": "pt"})


@pytest.fixture(scope="module")
def input_ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def run_exported(directories: list[Path], input_ids: torch.Tensor, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Return logits and tokens from a process that loads the exports with their code."""
    save_file({"input_ids": input_ids}, tmp_path / "input.safetensors")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "input.safetensors"), str(tmp_path / "out.safetensors"),
         *map(str, directories)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize("cases", [
    pytest.param(CASES[:1] + CASES[7:8], id="two"), pytest.param(CASES, id="all", marks=pytest.mark.slow)])
def test_transformers_runs_our_routing_from_the_export(
    cases: list[tuple[str, dict[str, Any]]], input_ids: torch.Tensor, tmp_path: Path,
) -> None:
    exports, expected = [], []
    for number, (family, options) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        moe = tuned(place, family, seed=number, **options)
        if options is BIASED:
            with_bias(moe)
        export = place / "export"
        export.mkdir()
        export_code(moe, export)
        model = load_model(moe, torch.float32)
        with torch.no_grad():
            logits = model(input_ids=input_ids, use_cache=False).logits
            tokens = model.generate(input_ids[:1, :6], attention_mask=torch.ones(1, 6), max_new_tokens=12, do_sample=False)
        exports.append(export)
        expected.append((logits, tokens))
    found = run_exported(exports, input_ids, tmp_path)
    for number, ((logits, tokens), case) in enumerate(zip(expected, cases, strict=True)):
        assert logits.std() > 0.1
        assert float((found[f"{number}.logits"] - logits).abs().max()) < 1e-5, case
        assert found[f"{number}.tokens"].tolist() == tokens.tolist(), case


def test_a_model_tuned_in_more_bits_than_its_base_is_not_rounded(tmp_path: Path) -> None:
    """transformers loads the dtype in config.json, which upcycled models have from their base."""
    moe = tuned(tmp_path)
    content = json.loads((moe / "config.json").read_text())
    content["dense_config"] |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (moe / "config.json").write_text(json.dumps(content))
    (tmp_path / "export").mkdir()
    export_code(moe, tmp_path / "export")
    exported = json.loads((tmp_path / "export" / "config.json").read_text())
    assert exported["dtype"] == "float32" and "torch_dtype" not in exported


@pytest.mark.parametrize(("options", "reason"), [
    ({"mode": "fusion", "shared_expert": False}, "upcycle.mode fusion cannot be exported"),
    ({"router": "hashed"}, "upcycle.router hashed cannot be exported"),
    ({"expert_rank": 2, "groups": 1}, "upcycle.groups 1 cannot be exported"),
])
def test_a_routing_that_cannot_be_expressed_is_refused_by_name(
    options: dict[str, Any], reason: str, tmp_path: Path,
) -> None:
    start = tmp_path / "moe"
    start.mkdir()
    upcycle(dense_model(tmp_path / "dense"), start, UpcycleConfig(num_experts=4, num_experts_per_tok=2, **options), seed=0)
    with pytest.raises(CheckpointError, match=reason):
        export_code(start, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(("family", "reason"), [
    ("starcoder2", "its experts have biases"), ("gpt_neox", "its FFN has no gate"), ("gemma2", "its activation"),
    ("gpt2", "transposed"), ("bloom", "its FFNs are not model.layers"),
])
def test_a_family_that_does_not_fit_is_refused_with_the_reason(family: str, reason: str, tmp_path: Path) -> None:
    start = tmp_path / "moe"
    start.mkdir()
    upcycle(dense_model(tmp_path / "dense", family), start, UpcycleConfig(num_experts=4, num_experts_per_tok=2), seed=0)
    with pytest.raises(CheckpointError, match=reason):
        export_code(start, tmp_path / "export")
