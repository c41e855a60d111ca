"""The shared expert's weight by class of token, where it is constant and where a gate depends on the token."""

from pathlib import Path

import pytest
import torch

from tests.factories import dense_model, tokenizer
from xft_core.data.rows import Row, rows_of
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import UpcycleStage
from xft_core.stages.run import run_stage
from xft_core.training.shared_weight import shared_weight_by_class

TEXTS = ["x = 1\n", "def f(a):\n    return a  # that\n", "It is so."]


def test_means_and_spreads_are_those_of_the_tokens_of_each_class(tmp_path: Path) -> None:
    known = tokenizer()
    prompt_ids, *texts = (known(text, add_special_tokens=False).input_ids for text in ("Go", *TEXTS))
    rows = rows_of([Row([*prompt_ids, *text], len(prompt_ids)) for text in texts])
    upcycle = UpcycleConfig(num_experts=4, num_experts_per_tok=2, shared_gate="token")
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(dense_model(tmp_path / "dense")), upcycle=upcycle))
    model = load_model(tmp_path / "moe", torch.float64)
    constant = shared_weight_by_class(model, rows, known)
    assert {item.name for item in constant} == {"keyword", "identifier", "comment", "number or operator", "prose"}
    for item in constant:
        assert item.mean == pytest.approx([0.75, 0.75]) and item.spread == pytest.approx([0, 0], abs=1e-6)
    gate = moe_blocks(model)[1].router.gate
    assert gate is not None
    with torch.no_grad():
        gate.weight.normal_(generator=torch.Generator().manual_seed(0))
    moved = {item.name: item for item in shared_weight_by_class(model, rows, known)}
    assert moved["prose"].mean[0] == pytest.approx(0.75) and moved["prose"].spread[1] > 1e-3
    whole, prompt = rows[2]
    given: list[torch.Tensor] = []
    gate.register_forward_hook(lambda module, inputs, output: given.append(1 - torch.sigmoid(output)))
    model(input_ids=whole[None])
    is_word = torch.tensor([bool(known.decode([token]).strip()) for token in whole[prompt:].tolist()])
    of_prose = given[0][prompt:][is_word]
    assert moved["prose"].tokens == len(of_prose) > 4
    assert moved["prose"].mean[1] == pytest.approx(float(of_prose.mean()))
    assert moved["prose"].spread[1] == pytest.approx(float(of_prose.std(correction=0)))
