"""The probes run the real arithmetic of a layer in each of its forms, and their rates are numbers of a machine."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xft_core.planning import rates
from xft_core.planning.shape import Shape
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe

SMALL = Shape(64, 160, 2, 512, 64, 32, gated=True, tied=True)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.01)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("overrides", [
    (), ("upcycle.shared_expert=false", "upcycle.num_experts_per_tok=1"), ("upcycle.expert_rank=4",),
    ("sft.precision=bf16", "generate.precision=bf16")])
@pytest.mark.parametrize("gated", [True, False])
def test_every_form_of_a_layer_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], gated: bool,
) -> None:
    monkeypatch.setattr(rates, "_start", lambda: 0.25)  # measured below
    recipe = parse(Recipe, {}, ["data.max_length=32", "upcycle.num_experts=4", "upcycle.num_experts_per_tok=3", *overrides])
    found = rates.measured_rates(replace(SMALL, gated=gated), recipe, 1, tmp_path)
    assert found.start == 0.25 and not found.accelerated and found.busy >= 1 and found.moe_flops is not None
    for rate in (found.flops, found.moe_flops, found.bandwidth, found.disk):
        assert 1e5 < rate < 1e15
    assert 0 < found.token < 5 and 0 < found.moe_token < 5
    assert torch.get_num_threads() == 1


def test_experts_too_large_to_probe_are_taken_for_dense_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_start", lambda: 0.0)
    monkeypatch.setattr(rates, "LARGEST", 1.0)
    found = rates.measured_rates(SMALL, parse(Recipe, {}, ["data.max_length=32"]), 1, tmp_path)
    assert found.moe_flops == found.flops
    assert found.moe_token == pytest.approx(found.token * Recipe().upcycle.num_experts_per_tok)


def test_the_start_of_a_stage_is_timed_and_the_disk_may_not_exist_yet(tmp_path: Path) -> None:
    assert 0 < rates._start() < 300
    assert math.isfinite(rates.given_rates(1e9, tmp_path / "not" / "made").disk) and not any(tmp_path.iterdir())
