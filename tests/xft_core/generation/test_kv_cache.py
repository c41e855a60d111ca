"""The cache that is extended in place gives the results of transformers' own in every family, even after rows were selected."""

from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tests.factories import FAMILY_CONFIGS, VOCABULARY, dense_model, each_family
from xft_core.generation.kv_cache import ROOM, GrowingLayer, growing_cache
from xft_core.models.loading import load_model


@pytest.mark.parametrize("family", each_family(sorted(FAMILY_CONFIGS)))
@torch.inference_mode()
def test_logits_are_those_with_transformers_own_cache(tmp_path: Path, family: str) -> None:
    model = load_model(dense_model(tmp_path / "model", family), torch.float32)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (4, 40), generator=generator)
    caches = [DynamicCache(config=model.config), growing_cache(model)]
    chosen = torch.tensor([3, 1])
    for part in (ids[:, :20], ids[:, 20:21], ids[:, 21:22]):
        expected, found = (model(part, past_key_values=cache).logits for cache in caches)
        assert torch.equal(found, expected)
    for cache in caches:
        cache.batch_select_indices(chosen)
    for place in range(22, 40):
        expected, found = (model(ids[chosen, place:place + 1], past_key_values=cache).logits for cache in caches)
        assert torch.equal(found, expected)


def test_a_buffer_is_kept_until_it_is_full_and_made_anew_for_chosen_rows() -> None:
    growing, usual = GrowingLayer(), DynamicLayer()
    generator = torch.Generator().manual_seed(0)

    def append(tokens: int, rows: int) -> int:
        keys, values = torch.randn(2, rows, 2, tokens, 4, generator=generator)
        for found, expected in zip(growing.update(keys, values), usual.update(keys, values), strict=True):
            assert torch.equal(found, expected)
        return growing.keys.data_ptr()

    first = append(5, rows=3)
    assert append(ROOM, rows=3) == first
    assert append(1, rows=3) != first  # the buffer is full
    before = growing.keys.clone()
    for layer in (growing, usual):
        layer.batch_select_indices(torch.tensor([0]))
    append(1, rows=1)
    assert torch.equal(growing.keys[..., :-1, :], before[:1])
