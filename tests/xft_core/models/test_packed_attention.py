"""Attention example by example equals transformers' own attention over the whole packed sequence."""

from pathlib import Path

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.factories import VOCABULARY, dense_model
from xft_core.data.packing import PackedRows
from xft_core.data.rows import Row, rows_of
from xft_core.models.loading import load_model
from xft_core.models.packed_attention import NAME, _mask, attend_by_example
from xft_core.training.response_loss import response_loss


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_whole_mask(
        family: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers examples that are longer and shorter than an attention window (16), and padding."""
    monkeypatch.setattr("xft_core.models.packed_attention.LEAST_BLOCK", 8)
    generator = torch.Generator().manual_seed(0)
    data = PackedRows(rows_of([
        Row(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), 1) for length in [40, 5, 3, 30, 4, 20]]),
        64, packing=True)
    batch = data.collate([data[index] for index in range(len(data))])
    assert len(data) > 1 and not batch["token_mask"].all()
    found = []
    for by_example in (False, True):
        model = load_model(dense_model(tmp_path / "model", family), torch.float64).train()
        if not by_example:
            monkeypatch.setattr("xft_core.training.response_loss.attend_by_example", lambda model: None)
        else:
            monkeypatch.setattr("xft_core.training.response_loss.attend_by_example", attend_by_example)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = response_loss(model, batch)
        loss.backward()
        assert (model.config._attn_implementation == NAME) == by_example
        found.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (loss, gradients), (own_loss, own_gradients) = found
    assert torch.allclose(loss, own_loss, rtol=1e-12)
    assert all(torch.allclose(gradients[name], own_gradients[name], rtol=0, atol=1e-9) for name in gradients)


@pytest.mark.parametrize("autocast", [True, False])
def test_16_bit_attention_is_computed_in_fp32_in_training_only(
        autocast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's CPU kernel takes several times as long for the gradient of 16-bit attention."""
    rows = rows_of([Row([3 + number % 40 for number in range(length)], 1) for length in (80, 90)])
    data = PackedRows(rows, 256, packing=True)
    model = load_model(dense_model(tmp_path / "model"), torch.float32 if autocast else torch.bfloat16).train()
    batch, computed = data.collate([data[0]]), []

    def recorded(module: torch.nn.Module, *qkv: torch.Tensor, **kwargs: object) -> object:
        computed.append((qkv[0].dtype, torch.is_autocast_enabled("cpu")))
        return sdpa_attention_forward(module, *qkv, **kwargs)

    monkeypatch.setattr("xft_core.models.packed_attention.sdpa_attention_forward", recorded)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = response_loss(model, batch)
        assert set(computed) == {(torch.float32, False)}
        loss.backward()
        computed.clear()
        with torch.no_grad():
            response_loss(model, batch)
    assert set(computed) == {(torch.float32, True) if autocast else (torch.bfloat16, False)}
    exact = response_loss(load_model(tmp_path / "model", torch.float64), batch)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


def test_the_mask_is_cut_between_examples_into_blocks_that_are_worth_it() -> None:
    position_ids = torch.cat([torch.arange(length) for length in (100, 10, 20, 40, 70, 1, 1)])
    example = (position_ids == 0).cumsum(0)

    def same_example(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (example[query] == example[key])

    (blocks,) = _mask(batch_size=1, q_length=242, kv_length=242, mask_function=same_example, allow_is_causal_skip=False)
    assert [block.length for block in blocks] == [100, 70, 70, 2]
    assert [block.mask is None for block in blocks] == [True, False, True, False]
