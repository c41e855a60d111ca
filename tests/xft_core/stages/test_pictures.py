"""Upcycling and merging the language model of models that read pictures."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from tests.factories import PICTURE_CONFIGS, picture_batch, picture_model
from xft_core.families import PICTURE_FAMILIES
from xft_core.models.loading import load_model
from xft_core.models.upcycled import moe_blocks
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.merge import merge
from xft_core.stages.upcycle import upcycle


@pytest.fixture(scope="module", params=PICTURE_CONFIGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    source, moe = picture_model(directory / "dense", request.param), directory / "moe"
    moe.mkdir()
    upcycle(source, moe, UpcycleConfig(num_experts=4, num_experts_per_tok=3), seed=0)
    return request.param, source, moe


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_every_family_that_reads_pictures_is_tested() -> None:
    assert set(PICTURE_CONFIGS) == set(PICTURE_FAMILIES)


@torch.no_grad()
def test_upcycling_changes_no_logit_with_pictures(made: tuple[str, Path, Path]) -> None:
    family, source, moe = made
    batch = picture_batch(family)
    stock = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float64).eval()
    upcycled = load_model(moe, torch.float64)
    assert len(moe_blocks(upcycled)) == 2
    wide = {name: item.double() if item.is_floating_point() else item for name, item in batch.items()}
    expected, found = (model(**wide, use_cache=False).logits for model in (stock, upcycled))
    assert float((expected - found).abs().max()) < 1e-10 * float(expected.abs().max())
    other = wide | {"pixel_values": wide["pixel_values"].flip(0)}
    assert not torch.allclose(stock(**other, use_cache=False).logits, expected)  # the picture plays a part


def test_a_merge_of_equal_experts_is_the_source_in_names_and_bits(made: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, source, moe = made
    merge(moe, tmp_path, torch.full((2, 4), 0.25, dtype=torch.float64))
    expected, found = tensors(source), tensors(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    _, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


def test_only_ffns_of_the_language_model_become_mixtures(made: tuple[str, Path, Path]) -> None:
    family, source, moe = made
    dense, upcycled = load_model(source, torch.float32).state_dict(), load_model(moe, torch.float32).state_dict()
    new = {name for name in upcycled if name not in dense}
    assert new and all(name.startswith(f"{PICTURE_FAMILIES[family]}.layers.") and ".mlp." in name for name in new)
    assert all(torch.equal(dense[name], upcycled[name]) for name in dense if name in upcycled)
