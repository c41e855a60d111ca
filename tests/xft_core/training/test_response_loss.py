"""The loss computed block by block in the head equals the loss over all logits, and so do its gradients, for every family."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories import TESTED_FAMILIES, VOCABULARY, dense_model, each_family
from xft_core.data.packing import IGNORED
from xft_core.models.discovery import family_of
from xft_core.models.loading import load_model
from xft_core.training import response_loss as module
from xft_core.training.response_loss import response_loss, response_nll


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_LOGITS", 1)
    monkeypatch.setattr(module, "LEAST_BLOCK", 5)


def batch(packed: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids_BS = torch.randint(3, VOCABULARY, (3, 16), generator=generator)
    labels_BS = torch.where(torch.rand(ids_BS.shape, generator=generator) < 0.4, IGNORED, ids_BS)
    position_ids_BS = torch.arange(16).expand(3, 16).clone()
    if packed:
        position_ids_BS[1, 7:] -= 7  # two examples in one sequence
    return {"input_ids": ids_BS, "position_ids": position_ids_BS, "labels": labels_BS}


def full(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    given = {name: inputs[name] for name in ("input_ids", "position_ids")}
    return response_nll(model(**given, use_cache=False).logits, inputs["labels"])


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (loss / 7).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", each_family())
def test_loss_and_gradients_are_those_of_all_logits(family: str, tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path, family), torch.float64)
    inputs = batch(packed=family_of(model.config).packs)
    expected, found = full(model, inputs), response_loss(model, inputs)
    assert found.dtype == torch.float64 and (found - expected).abs() <= 1e-10
    expected_gradients, found_gradients = gradients(model, expected), gradients(model, found)
    assert found_gradients.keys() == expected_gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected_gradients.items():
        assert (found_gradients[name] - gradient).abs().max() <= 1e-10, name
    with torch.no_grad():
        assert abs(float(response_loss(model, inputs) - expected)) <= 1e-10


def test_every_family_with_a_plain_head_takes_the_short_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "response_nll", lambda *_: pytest.fail("all logits were made"))
    for family in TESTED_FAMILIES:
        model = load_model(dense_model(tmp_path / family, family), torch.float32)
        if family_of(model.config).plain_head:
            response_loss(model, batch(packed=family_of(model.config).packs))


def test_examples_that_would_see_each_other_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="would see each other"):
        response_loss(load_model(dense_model(tmp_path, "bloom"), torch.float32), batch())


@pytest.mark.parametrize(("family", "changes"), [("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 8.0})])
def test_scaled_logits_are_the_models_own(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path, family, **changes), torch.float64)
    assert not family_of(model.config).plain_head
    assert response_loss(model, batch()) == full(model, batch())


def test_soft_capped_logits_are_the_models_own(tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path, "gemma2", final_logit_softcapping=0.5), torch.float64)
    assert model(input_ids=batch()["input_ids"]).logits.abs().max() <= 0.5
    assert response_loss(model, batch()) == full(model, batch())


def test_a_head_that_is_fixed_passes_the_gradient_on(tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path), torch.float64).requires_grad_(False)
    chosen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    expected = torch.autograd.grad(full(model, batch()), chosen)[0]
    assert (torch.autograd.grad(response_loss(model, batch()), chosen)[0] - expected).abs().max() <= 1e-10


def test_a_head_with_a_bias(tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path), torch.float64)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCABULARY, dtype=torch.float64))
    expected, found = gradients(model, full(model, batch())), gradients(model, response_loss(model, batch()))
    assert all((found[name] - gradient).abs().max() <= 1e-10 for name, gradient in expected.items())
    assert "lm_head.bias" in found


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bf16_the_difference_is_rounding(autocast: bool, tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path), torch.float32 if autocast else torch.bfloat16)
    exact = load_model(dense_model(tmp_path), torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found, expected = response_loss(model, batch()), full(model, batch())  # in this order, so that both have its attention
    assert found.dtype == torch.float32
    truth, truth_gradients = full(exact, batch()), gradients(exact, full(exact, batch()))
    assert (found - truth).abs() <= 2 * (expected - truth).abs() + 1e-2
    before, after = gradients(model, expected), gradients(model, found)
    for name, gradient in truth_gradients.items():
        scale = gradient.norm()
        assert after[name].dtype == model.state_dict()[name].dtype
        assert (after[name] - gradient).norm() <= 1.2 * (before[name] - gradient).norm() + 0.01 * scale, name


def test_no_labels_give_zero_and_the_head_is_given_back(tmp_path: Path) -> None:
    model = load_model(dense_model(tmp_path), torch.float32)
    inputs = batch() | {"labels": torch.full((3, 16), IGNORED)}
    assert response_loss(model, inputs) == 0
    with pytest.raises(IndexError):
        response_loss(model, inputs | {"labels": torch.zeros(2, 4, dtype=torch.long)})
    assert model(input_ids=inputs["input_ids"]).logits.shape == (3, 16, VOCABULARY)
