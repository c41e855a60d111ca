"""Distillation: the divergence and its gradient follow the equation, and learning with it moves closer to the teacher."""

from pathlib import Path

import pytest
import torch

import xft_core.mixing.objective as objective_module
from tests.xft_core.mixing.models import mixed as mix
from tests.xft_core.mixing.models import tuned
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import load_rows
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.learning import objective_now
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.objective import Distillation
from xft_core.models.loading import load_model

SHARES = torch.tensor([[0.75, 0.05, 0.1, 0.1]] * 2, dtype=torch.float64)
CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # a plain head, and one that changes its logits afterwards
def test_the_divergence_is_that_of_all_logits(
        family: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "BLOCK_LOGITS", 1)
    monkeypatch.setattr(objective_module, "LEAST_BLOCK", 7)  # several blocks, of which the last is smaller
    moe = tuned(tmp_path, family)
    data = PackedRows(load_rows(root / "data", "train"), 160, packing=True)
    batch = data.collate([data[0], data[1]])
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    distill = Distillation(moe, torch.float64, CPU)
    with MixtureReader(moe) as mixture:
        mixed = MixedModel(mixture, torch.float64, CPU)
        mixed.apply(SHARES)
        mixed.want_gradient()
        found = distill(mixed.model, batch)
        found.backward()
        gradient = mixed.weight_gradient()
        mixed.want_gradient()
        chosen = batch["labels"][:, 1:] != IGNORED
        teacher = load_model(moe, torch.float64)(**inputs).logits[:, :-1][chosen].log_softmax(-1).detach()
        student = mixed.model(**inputs).logits[:, :-1][chosen].log_softmax(-1)
        expected = (teacher.exp() * (teacher - student)).sum()
        expected.backward()
        wanted = mixed.weight_gradient()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9) and expected.item() > 0.01
    assert torch.allclose(gradient, wanted, rtol=1e-6, atol=1e-9)


def test_learning_by_it_comes_nearer_to_the_mixture_of_experts(root: Path, tmp_path: Path) -> None:
    metrics = mix(root, tmp_path / "mix", objective="distill", epochs=4, rows="reserved")
    assert metrics["movement_max"] > 0.01
    distill, rows = Distillation(root / "moe", torch.float32, CPU), load_rows(root / "data", "reserved")
    with MixtureReader(root / "moe") as mixture:
        mixed = MixedModel(mixture, torch.float32, CPU)
        found = []
        for weight_LN in (load_coefficients(tmp_path / "mix"), torch.tensor([[0.75, *[1 / 12] * 3]] * 2, dtype=torch.float64)):
            mixed.apply(weight_LN)
            found.append(objective_now(mixed, rows, 4, distill))
    assert found[0] < found[1] - 1e-4
