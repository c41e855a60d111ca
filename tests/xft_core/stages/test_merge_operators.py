"""Operators through mix and merge: the merged weights, the measured loss, resuming, and refused settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import xft_core.mixing.operators.merged as merged_module
from tests.factories import dense_model, each_family
from tests.xft_core.stages.test_mix import grown_apart
from tests.xft_core.stages.test_mix import ready as ready_data
from xft_core.errors import ArtifactError, CheckpointError, RecipeError
from xft_core.mixing.mixture import MixtureReader
from xft_core.recipe.load import parse
from xft_core.recipe.sections import MergeConfig, UpcycleConfig
from xft_core.recipe.sections.merge import ON_DELTAS, OPERATORS
from xft_core.stages.configs import MergeStage, MixStage
from xft_core.stages.run import run_stage
from xft_core.stages.upcycle import upcycle

ready = ready_data  # a fixture
EXACT: dict[str, dict[str, float]] = {  # with these, an operator reproduces equal experts
    "ties": {"density": 1.0}, "dare": {"density": 1.0}, "della": {"density": 1.0, "density_spread": 0.0}}


def merged(
    root: Path, model: Path, base: Path | None, data: Path, method: str, **fields: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """Return the merged tensors, and the metrics of mix and merge."""
    merge = MergeConfig(**({"method": method, "precision": "fp32", "calibration_rows": 6} | fields))  # type: ignore[arg-type]
    mix = MixStage(output=root / "mix", model=str(model), data=data, merge=merge, base=str(base) if base else None)
    measured = run_stage(mix).manifest.metrics
    stage = MergeStage(output=root / "merged", model=str(model), coefficients=root / "mix", data=data)
    metrics = run_stage(stage).manifest.metrics
    return load_file(root / "merged" / "model.safetensors"), measured, metrics


@pytest.mark.parametrize("method", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_experts_come_back(method: str, dtype: torch.dtype, ready: Path, tmp_path: Path) -> None:
    """An untouched upcycled model with a different base model: its experts are equal, but differ from the base model."""
    source, base = dense_model(tmp_path / "dense"), dense_model(tmp_path / "base", seed=5)
    weights = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    (tmp_path / "moe").mkdir()
    upcycle(source, tmp_path / "moe", UpcycleConfig(num_experts=4, num_experts_per_tok=3, store_experts="all"), seed=0)
    found, _, _ = merged(tmp_path, tmp_path / "moe", base, ready / "data", method, **EXACT.get(method, {}))
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert (tensor.float() - weights[name].float()).abs().max() <= 1e-6, name


@pytest.mark.parametrize("family", each_family())
@pytest.mark.parametrize("method", ["task_arithmetic", "regmean", "fisher"])
def test_every_family_merges_to_what_mix_measured(family: str, method: str, ready: Path, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, family)
    base = tmp_path / "dense" if method in ON_DELTAS else None
    found, measured, metrics = merged(tmp_path, directory, base, ready / "data", method)
    assert measured["held_out_nll_merged"] == pytest.approx(metrics["held_out_nll"], abs=1e-4)
    with MixtureReader(directory) as mixture:
        for layer in range(2):
            for tensor in mixture.expert_tensors(layer):
                shares = torch.tensor([0.75, 1 / 12, 1 / 12, 1 / 12], dtype=torch.float64)
                mean = sum(float(shares[e]) * tensor.of_expert(e).double() for e in range(4))
                near = (found[tensor.name].double() - mean).abs().max() <= 1e-5
                assert near == (method == "task_arithmetic"), tensor.name
    if method == "task_arithmetic":
        assert measured["held_out_nll_merged"] == pytest.approx(measured["held_out_nll_uniform"], abs=1e-4)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("method", ON_DELTAS)
def test_scale_0_is_the_base_model(method: str, ready: Path, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path)
    found, _, _ = merged(tmp_path, directory, tmp_path / "dense", ready / "data", method, scale=0.0)
    base = load_file(tmp_path / "dense" / "model.safetensors")
    assert all(torch.equal(tensor, base[name]) for name, tensor in found.items() if ".mlp." in name)


def test_the_seed_decides_what_dare_drops(ready: Path, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path)
    keys, files = [], []
    for number, seed in enumerate((1, 1, 2)):
        stage = MixStage(output=tmp_path / f"mix{number}", model=str(directory), data=ready / "data", seed=seed,
                         base=str(tmp_path / "dense"), merge=MergeConfig(method="dare", precision="fp32"))
        keys.append(run_stage(stage).manifest.key)
        files.append((stage.output / "ffn-00000.safetensors").read_bytes())
    assert keys[0] == keys[1] != keys[2] and files[0] == files[1] != files[2]


@pytest.mark.parametrize("method", ["ties", "regmean"])
def test_a_killed_operator_goes_on_with_the_layer_it_was_at(
        method: str, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xft_core.mixing.operators.calibration.LAYERS_BYTES", 1)  # one layer at a time
    directory = grown_apart(tmp_path)
    made: list[int] = []
    write = merged_module._write

    def stage(name: str) -> MixStage:
        merge = MergeConfig(method=method, precision="fp32", calibration_rows=6)  # type: ignore[arg-type]
        return MixStage(output=tmp_path / name, model=str(directory), data=ready / "data", merge=merge,
                        base=str(tmp_path / "dense"))

    def dies(target: Path, layer: int, tensors: dict[str, torch.Tensor]) -> None:
        if layer == 1 and len(made) == 1:
            made.append(-1)
            raise KeyboardInterrupt
        made.append(layer)
        write(target, layer, tensors)

    run_stage(stage("undisturbed"))
    monkeypatch.setattr(merged_module, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage("killed"))
    run_stage(stage("killed"))
    assert made == [0, -1, 1]
    for name in ("ffn-00000.safetensors", "ffn-00001.safetensors", "coefficients.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_biases_under_regmean_are_the_mean_by_routing_weights(ready: Path, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path, "starcoder2")
    found, _, _ = merged(tmp_path, directory, None, ready / "data", "regmean")
    layers = json.loads((tmp_path / "mix" / "coefficients.json").read_text())["layers"]
    with MixtureReader(directory) as mixture:
        biases = [tensor for tensor in mixture.expert_tensors(0) if tensor.name.endswith("bias")]
        assert len(biases) == 2
        for tensor in biases:
            expected = sum(layers[0]["weights"][e] * tensor.of_expert(e).double() for e in range(4))
            assert torch.allclose(found[tensor.name].double(), expected, rtol=0, atol=1e-6)
    assert layers[0]["weights"] != layers[1]["weights"] and sum(layers[0]["weights"]) == pytest.approx(1)


def test_what_is_refused(ready: Path, tmp_path: Path) -> None:
    directory, other = grown_apart(tmp_path), dense_model(tmp_path / "other", intermediate_size=40)
    merge = MergeConfig(method="ties", precision="fp32")

    def mix(base: Path | None) -> None:
        run_stage(MixStage(output=tmp_path / "mix", model=str(directory), data=ready / "data", merge=merge,
                           base=str(base) if base else None))

    with pytest.raises(RecipeError, match=r"Mixing needs the base model: .* \(ties\)"):
        mix(None)
    with pytest.raises(CheckpointError, match="is not the dense model of these experts"):
        mix(other)
    with pytest.raises(CheckpointError, match="Give the dense model it was upcycled from"):
        mix(directory)
    with pytest.raises(RecipeError, match=r"probability of 0\.9 to 1\.1"):
        parse(MergeConfig, {"method": "della", "density": 1.0})
    with pytest.raises(RecipeError, match="method ties has no number to search"):
        parse(MergeConfig, {"method": "ties", "search": "golden"})
    with pytest.raises(RecipeError, match="method fisher learns nothing"):
        parse(MergeConfig, {"method": "fisher", "shared_expert_weight": None})


def test_ffns_that_are_gone_or_of_another_model_are_refused(ready: Path, tmp_path: Path) -> None:
    directory = grown_apart(tmp_path)
    merged(tmp_path, directory, tmp_path / "dense", ready / "data", "task_arithmetic")
    wider = tmp_path / "wider"
    wider.mkdir()
    dense_model(wider / "dense", intermediate_size=40)
    (wider / "moe").mkdir()
    upcycle(wider / "dense", wider / "moe", UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    with pytest.raises(CheckpointError, match="The merged FFNs do not fit the model"):
        run_stage(MergeStage(output=tmp_path / "again", model=str(wider / "moe"), coefficients=tmp_path / "mix"))
    with pytest.raises(ArtifactError, match="cannot be read"):
        merged_module.load_layer(tmp_path, 0)
