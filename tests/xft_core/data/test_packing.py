"""Packing loses no token and leaks no attention between examples."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.factories import VOCABULARY, dense_model, each_family
from xft_core.data.packing import IGNORED, PackedRows, pack
from xft_core.data.rows import Row, load_rows, save_rows
from xft_core.errors import DataError
from xft_core.models.discovery import family_of
from xft_core.models.loading import load_model
from xft_core.models.packed_attention import attend_by_example
from xft_core.training.held_out import held_out_loss

LENGTHS = [9, 5, 12, 3, 7]


@given(st.lists(st.integers(1, 64), max_size=60))
def test_every_row_is_in_exactly_one_sequence_that_fits(lengths: list[int]) -> None:
    sequences = pack(lengths, 64)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in sequence) <= 64 for sequence in sequences)
    # Best fit leaves at most one sequence half empty.
    assert sum(sum(lengths[row] for row in sequence) <= 32 for sequence in sequences) <= 1


def test_a_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="row 1 has 65 tokens"):
        pack([3, 65], 64)


def test_a_part_of_the_rows_gives_the_same_batch_every_time(tmp_path: Path) -> None:
    packed = PackedRows(rows(tmp_path).rows.part(1, 2, seed=0), 30, packing=True)
    batches = [packed.collate(packed.sequences) for _ in range(2)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])


def rows(tmp_path: Path, seed: int = 0, packing: bool = True) -> PackedRows:
    generator = torch.Generator().manual_seed(seed)
    save_rows(tmp_path / "train.safetensors", [
        Row(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), 2) for length in LENGTHS])
    return PackedRows(load_rows(tmp_path, "train"), 24, packing=packing)


@pytest.mark.parametrize("by_example", [False, True])
@pytest.mark.parametrize("family", each_family())
@torch.no_grad()
def test_packed_logits_are_those_of_each_example_alone(
        family: str, by_example: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xft_core.models.packed_attention.LEAST_BLOCK", 6)  # so that some examples share a block
    model = load_model(dense_model(tmp_path / "model", family), torch.float32)
    if by_example and family_of(model.config).attends_by_example:
        attend_by_example(model)
        assert model.config._attn_implementation == ("sdpa_by_example" if family != "gemma2" else "eager")
    data = rows(tmp_path, packing=family_of(model.config).packs)
    batch = data.collate([data[index] for index in range(len(data))])
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    assert any(len(sequence) > 1 for sequence in data.sequences) == family_of(model.config).packs
    for number, sequence in enumerate(data.sequences):
        start = 0
        for row in sequence:
            tokens = data.rows[row][0]
            alone = model(input_ids=tokens[None], use_cache=False).logits[0]
            assert (packed[number, start:start + len(tokens)] - alone).abs().max() <= 1e-5
            start += len(tokens)


@pytest.mark.parametrize("change", [
    {"offsets": torch.tensor(3)}, {"offsets": torch.tensor([0, 9, 2, 36])}, {"offsets": torch.tensor([0, 9, 14, 99])},
    {"prompt_lengths": torch.tensor([2, 2])}, {"prompt_lengths": torch.tensor([2, 2, 2, 2, -1])},
    {"prompt_lengths": torch.tensor([9, 5, 12, 3, 8])}, {"prompt_lengths": torch.tensor(LENGTHS)},
    {"prompt_lengths": torch.full((5,), 2.0)}, {"input_ids": torch.full((36,), -1)},
    {"input_ids": torch.ones(36, 1, dtype=torch.int32)}, {"input_ids": torch.zeros(0, dtype=torch.int32)}])
def test_tensors_that_are_no_rows_are_refused(change: dict[str, torch.Tensor], tmp_path: Path) -> None:
    rows(tmp_path)
    path = tmp_path / "train.safetensors"
    save_file(load_file(path) | change, path)
    with pytest.raises(DataError, match="its tensors are inconsistent"):
        load_rows(tmp_path, "train")


def test_a_batch_counts_every_token_once(tmp_path: Path) -> None:
    data = rows(tmp_path)
    batch = data.collate([data[index] for index in range(len(data))])
    assert int(batch["token_mask"].sum()) == sum(LENGTHS)
    assert int((batch["labels"] != IGNORED).sum()) == sum(length - 2 for length in LENGTHS)
    assert bool((batch["labels"][~batch["token_mask"]] == IGNORED).all())


def test_the_held_out_loss_is_that_of_the_model_itself(tmp_path: Path) -> None:
    """Compare it with transformers' own loss, example by example."""
    model = load_model(dense_model(tmp_path / "model"), torch.float32)
    data = rows(tmp_path)
    total, tokens = 0.0, 0
    for row in range(len(LENGTHS)):
        input_ids, prompt_length = data.rows[row]
        labels = input_ids.clone()
        labels[:prompt_length] = IGNORED
        with torch.no_grad():
            loss = model(input_ids=input_ids[None], labels=labels[None]).loss
        total, tokens = total + loss.item() * (len(labels) - prompt_length), tokens + len(labels) - prompt_length
    found = held_out_loss(model, data.rows)
    assert found.nll == pytest.approx(total / tokens, abs=1e-5) and found.tokens == tokens and found.router == []
