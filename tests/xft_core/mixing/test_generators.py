"""Generators of coefficients: uniform at the start, equivariant, with exact gradients, resumable, trained on earlier runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import xft_core.mixing.learning as learning
from tests.xft_core.mixing.models import LEARN, mix_stage, prepared, tuned
from tests.xft_core.mixing.models import mixed as mix
from xft_core.data.rows import load_rows
from xft_core.errors import ArtifactError, RecipeError
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.generators.amortized import KINDS, Example, load_generator, meta_train, new_generator, save_generator
from xft_core.mixing.generators.features import NAMES, Features, features_of
from xft_core.mixing.generators.graph import GraphGenerator
from xft_core.mixing.granularity import Granularity
from xft_core.mixing.learning import objective_now
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.objective import nll
from xft_core.mixing.parameters import MixingParameters
from xft_core.stages.configs.meta_train import MetaTrainStage, MixingRun
from xft_core.stages.run import run_stage
from xft_core.store.results.meta_train import LeaveOneOutFile

CPU = torch.device("cpu")
UNIFORM = torch.tensor([[0.75, *[1 / 12] * 3]] * 2, dtype=torch.float64)


def random_features(seed: int = 0, num_layers: int = 3, num_experts: int = 5, shared: bool = True) -> Features:
    generator = torch.Generator().manual_seed(seed)
    within = torch.rand(num_layers, num_experts, num_experts, dtype=torch.float64, generator=generator) - 0.5
    within = within + within.mT
    within.diagonal(dim1=1, dim2=2).zero_()
    return Features(
        torch.randn(num_layers, num_experts, len(NAMES), dtype=torch.float64, generator=generator), within,
        torch.randn(num_layers - 1, num_experts, num_experts, dtype=torch.float64, generator=generator), shared)


def moved(kind: str, features: Features, seed: int = 1) -> torch.nn.Module:
    """Return a generator that has moved away from its start."""
    generator = new_generator(kind, features, seed)
    torch.nn.init.normal_(generator.last.weight, generator=torch.Generator().manual_seed(seed))
    return generator.requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_with_uniform_mixing_bit_for_bit(kind: str, root: Path) -> None:
    features = random_features(num_layers=2, num_experts=4)
    with MixtureReader(root / "moe") as mixture:
        made = MixingParameters(mixture, LEARN, Granularity(), 0.75, new_generator(kind, features, 0))
        free = MixingParameters(mixture, LEARN, Granularity(), 0.75)
        assert torch.equal(made.shares(), free.shares())
        size = sum(tensor.numel() for tensor in made.tensors.values())
        assert 2000 < size < 3500


def permuted(features: Features, order_LN: torch.Tensor) -> Features:
    """Return the features with the experts of every layer reordered: expert ``order_LN[l, i]`` becomes expert i."""
    layer_L1 = torch.arange(len(order_LN))[:, None]
    within = features.within_LNN[layer_L1[..., None], order_LN[:, :, None], order_LN[:, None]]
    before, after = order_LN[:-1], order_LN[1:]
    between = features.between_LNN[layer_L1[:-1, :, None], before[:, :, None], after[:, None]]
    return Features(features.features_LNP[layer_L1, order_LN], within, between, features.shared_expert)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_that_change_places_take_their_coefficients_along(kind: str, shared: bool) -> None:
    """Every layer has a different order; the shared expert stays first."""
    features = random_features(shared=shared)
    first = int(shared)
    generator = torch.Generator().manual_seed(4)
    order_LN = torch.stack([
        torch.cat([torch.arange(first), first + torch.randperm(5 - first, generator=generator)]) for _ in range(3)])
    alpha_LR = moved(kind, features)()
    permuted_LR = moved(kind, permuted(features, order_LN))()
    assert alpha_LR.std() > 0.01 and not torch.allclose(alpha_LR, permuted_LR)
    assert torch.allclose(permuted_LR, alpha_LR.gather(1, order_LN[:, first:] - first), rtol=0, atol=1e-12)


def test_permuted_experts_on_disk_have_permuted_features(root: Path, tmp_path: Path) -> None:
    """From end to end: reordering the routed experts of one layer, with its router's outputs, only reorders the features."""
    tuned(tmp_path)
    weights = load_file(tmp_path / "moe" / "model.safetensors")
    order = torch.tensor([2, 0, 1])
    for name in [name for name in weights if ".layers.1.mlp.experts." in name]:
        weights[name] = weights[name][order].contiguous()
    for name in ("output", "noise"):
        if (full := f"model.layers.1.mlp.router.{name}.weight") in weights:
            weights[full] = weights[full][order].contiguous()
    save_file(weights, tmp_path / "moe" / "model.safetensors", {"format": "pt"})
    found = []
    rows = load_rows(root / "data", "reserved")
    for moe in (root / "moe", tmp_path / "moe"):
        with MixtureReader(moe, root / "dense") as mixture:
            mixed = MixedModel(mixture, torch.float32, CPU)
            found.append(features_of(mixed, moe, rows, 8, UNIFORM))
    order_LN = torch.tensor([[0, 1, 2, 3], [0, 3, 1, 2]])
    expected = permuted(found[0], order_LN)
    assert torch.allclose(found[1].features_LNP, expected.features_LNP, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[1].within_LNN, expected.within_LNN, rtol=0, atol=1e-9)
    assert torch.allclose(found[1].between_LNN, expected.between_LNN, rtol=0, atol=1e-9)
    assert not torch.allclose(found[0].within_LNN, expected.within_LNN)
    for kind in KINDS:
        before, after = moved(kind, found[0])(), moved(kind, found[1])()
        assert torch.allclose(after[1], before[1][order], rtol=0, atol=1e-3)


def test_features_are_what_their_names_say(root: Path) -> None:
    """Compare them with the equations in fp64, on one layer's tensors."""
    with MixtureReader(root / "moe", root / "dense") as mixture:
        mixed = MixedModel(mixture, torch.float32, CPU)
        found = features_of(mixed, root / "moe", load_rows(root / "data", "reserved"), 8, UNIFORM)
        tensors = list(mixture.expert_tensors(1))
        experts = [torch.stack([tensor.of_expert(e).double().flatten() for e in range(4)]) for tensor in tensors]
        base = torch.cat([mixture.base_tensor(tensor.name, tensor.shape).double().flatten() for tensor in tensors])
    at = dict(zip(NAMES, found.features_LNP[1].T, strict=True))
    for name, expert in zip(("log_change_gate", "log_change_up", "log_change_down"), experts, strict=True):
        expected = ((expert[1:] - expert[0]).norm(dim=1) / expert[0].norm()).log()
        assert torch.allclose(at[name][1:], expected, atol=1e-8)
    flat = torch.cat(experts, dim=1)
    changes = flat - flat[0]
    for i in (1, 2, 3):
        cosine = torch.nn.functional.cosine_similarity
        assert float(found.within_LNN[1, i, 1 + i % 3]) == pytest.approx(float(cosine(changes[i], changes[1 + i % 3], dim=0)))
        assert float(at["cosine_with_mean_change"][i]) == pytest.approx(float(cosine(changes[i], changes[1:].mean(0), dim=0)))
        assert float(at["cosine_with_tuning"][i]) == pytest.approx(float(cosine(changes[i], flat[0] - base, dim=0)))
    assert at["mean_routing_weight"].sum() == pytest.approx(1, abs=1e-5) and at["load"][0] == pytest.approx(1)
    assert at["load"][1:].sum() == pytest.approx(2)  # two routed experts per token
    assert at["is_shared"].tolist() == [1, 0, 0, 0] and at["depth"].tolist() == [1] * 4
    assert torch.allclose(found.between_LNN[0].sum(1)[1:], torch.zeros(3).double(), atol=1e-9)  # the lifts cancel out


def test_without_edges_the_graph_is_a_network_for_each_expert_alone() -> None:
    features = random_features()
    generator = moved("graph", Features(
        features.features_LNP, torch.zeros_like(features.within_LNN), torch.zeros_like(features.between_LNN), True))
    assert isinstance(generator, GraphGenerator)
    h = generator.first(features.standardized())
    for update in generator.updates:
        h = h + update(torch.cat([h, torch.zeros_like(h)], dim=-1))
    assert torch.allclose(generator(), generator.last(h).squeeze(-1)[:, 1:], rtol=0, atol=1e-12)
    assert not torch.allclose(generator(), moved("graph", features)(), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_difference_quotient(kind: str, root: Path) -> None:
    """Differentiate the loss by weights of the generator, through the projected gradient."""
    rows = load_rows(root / "data", "reserved")
    with MixtureReader(root / "moe") as mixture:
        mixed = MixedModel(mixture, torch.float64, CPU)
        generator = moved(kind, random_features(num_layers=2, num_experts=4)).requires_grad_(True)
        parameters = MixingParameters(mixture, LEARN, Granularity(), 0.75, generator)

        def loss(gradient: bool = False) -> float:
            mixed.apply(parameters.shares().detach())
            return objective_now(mixed, rows, 4, nll, gradient)

        loss(gradient=True)
        parameters.shares().backward(mixed.weight_gradient())
        for tensor in (generator.last.weight, generator.first.weight):  # type: ignore[union-attr]
            assert isinstance(tensor, torch.Tensor) and tensor.grad is not None
            place = int(tensor.grad.abs().argmax())
            values = []
            for step in (1e-2, -2e-2):
                tensor.data.flatten()[place] += step
                values.append(loss())
            tensor.data.flatten()[place] += 1e-2
            assert float(tensor.grad.flatten()[place]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_generator_goes_on_to_the_same_coefficients(
        kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "STEPS_BETWEEN_CHECKPOINTS", 3)
    changes: dict[str, Any] = {"generator": kind, "rows": "reserved", "epochs": 20, "batch_size": 2, "learning_rate": 0.01}
    metrics = mix(root, tmp_path / "undisturbed", **changes)
    assert metrics["movement_max"] > 0.01 and metrics["held_out_nll_merged"] < metrics["held_out_nll_uniform"]
    real, calls = learning.keep_newest, []

    def killed(*arguments: Any) -> None:
        real(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(learning, "keep_newest", killed)
    stage = mix_stage(root, tmp_path / "killed", **changes)
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage)
    run_stage(stage)
    found, expected = (load_coefficients(tmp_path / name) for name in ("killed", "undisturbed"))
    assert torch.equal(found, expected)
    assert Features.load(tmp_path / "killed").features_LNP.shape == (2, 4, len(NAMES))


@pytest.mark.parametrize("kind", KINDS)
def test_meta_training_learns_a_rule_of_the_features(kind: str, tmp_path: Path) -> None:
    """alpha* is a feature, so that a run left out of the training can be predicted."""
    examples = []
    for seed in range(6):
        features = random_features(seed)
        examples.append(Example(features, features.standardized()[:, 1:, 3].exp()))
    generator, error = meta_train(kind, examples[:5], seed=0, steps=150, learning_rate=0.02)
    assert error < 0.2
    generator.use(examples[5].features)
    alpha_LR, target_LR = generator(), examples[5].target_LR
    left = (alpha_LR - alpha_LR.mean(1, keepdim=True) - target_LR).square().mean() / target_LR.square().mean()
    assert left < 0.6
    save_generator(generator, tmp_path)
    again = load_generator(tmp_path, kind, examples[5].features)
    assert torch.equal(again(), alpha_LR)
    other = next(name for name in KINDS if name != kind)
    with pytest.raises(ArtifactError, match=f"of kind {kind}"):
        load_generator(tmp_path, other, examples[5].features)


def test_a_generator_of_earlier_runs_predicts_without_learning(root: Path, tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        directory = tmp_path / str(seed)
        directory.mkdir()
        tuned(directory, seed=seed)
        prepared(directory)
        mix(directory, directory / "mix", keep_features=True, epochs=4)
        runs.append(MixingRun(mix=directory / "mix", model=str(directory / "moe"), data=directory / "data"))
    stage = MetaTrainStage(output=tmp_path / "generator", runs=runs, generator="graph", steps=60)
    metrics = run_stage(stage).manifest.metrics
    found = LeaveOneOutFile.read(tmp_path / "generator")
    assert found is not None and metrics["runs"] == 2
    won = sum(run.uniform - run.learned for run in found.runs)
    assert won > 0 and metrics["recovered"] == pytest.approx(sum(run.uniform - run.predicted for run in found.runs) / won)
    assert stage.output.is_dir() and run_stage(stage).reused

    used = mix(tmp_path / "0", tmp_path / "predicted", generator="graph", generator_from=str(tmp_path / "generator"))
    assert used["predicted"] == 1 and "steps" not in used and used["movement_max"] > 0.001
    assert used["held_out_nll_merged"] != used["held_out_nll_uniform"]
    with pytest.raises(ArtifactError, match="of kind graph"):
        mix(tmp_path / "0", tmp_path / "other", generator="attention", generator_from=str(tmp_path / "generator"))
    mix(tmp_path / "0", tmp_path / "plain")
    with pytest.raises(ArtifactError, match="has no complete features"):
        run_stage(stage.model_copy(update={
            "output": tmp_path / "none", "runs": [runs[0].model_copy(update={"mix": tmp_path / "plain"})]}))
    mix(tmp_path / "0", tmp_path / "fixed", method="shared_only")
    (tmp_path / "fixed" / "features.safetensors").write_bytes((tmp_path / "0" / "mix" / "features.safetensors").read_bytes())
    with pytest.raises((RecipeError, ArtifactError)):
        run_stage(stage.model_copy(update={
            "output": tmp_path / "no", "runs": [runs[0].model_copy(update={"mix": tmp_path / "fixed"})]}))


def test_a_default_artifact_keeps_no_features(root: Path, tmp_path: Path) -> None:
    mix(root, tmp_path / "mix")
    assert sorted(path.name for path in (tmp_path / "mix").iterdir()) == ["coefficients.json", "manifest.json", "metrics.jsonl"]
    text = (tmp_path / "mix" / "coefficients.json").read_text()
    assert not any(name in text for name in ("granularity", "delta_scale"))
