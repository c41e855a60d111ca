"""Sums of mapped experts, row by row of one table: rounded once, wherever the experts are stored."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.factories import each_family
from tests.xft_core.stages.test_mix import grown_apart
from xft_core.mixing import weighted_sums
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.mixing.weighted_sums import ExpertRows
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import INDEX_NAME
from xft_core.stages.merge import merge

BITS = {torch.bfloat16: 8, torch.float16: 11}  # of precision, including the implicit first bit


def rounded_once(found: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor) -> bool:
    """Return whether the error is at most half of the last bit, plus that of summing ``terms`` (the largest sum) in fp32."""
    half_of_last_bit = torch.exp2(torch.frexp(exact).exponent - BITS[found.dtype] - 1.0)
    return bool(((found.double() - exact).abs() <= half_of_last_bit + 2.0**-19 * terms + 2.0**-25).all())


@given(
    shape=st.sampled_from([[1], [7], [5, 3], [9, 64], [4, 2, 3]]), gaps=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]), seed=st.integers(0, 2**16), block=st.sampled_from([1, 20, 2**20]))
def test_any_places_in_a_shard_give_the_sum_rounded_once(
        shape: list[int], gaps: list[int], dtype: torch.dtype, seed: int, block: int) -> None:
    """The experts are in any order, with other tensors of any size between them, so rows of the table overlap."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    content, starts = torch.empty(0, dtype=dtype), []
    for gap in gaps:
        starts.append(2 * (len(content) + gap))
        expert = torch.randn(size, generator=generator).to(dtype)
        content = torch.cat([content, torch.full([gap], math.nan, dtype=dtype), expert])
    content = torch.cat([content, torch.full([3], math.nan, dtype=dtype)])
    weight_n = torch.rand(len(gaps), generator=generator, dtype=torch.float64) / len(gaps)
    order = torch.randperm(len(gaps), generator=generator).tolist()
    experts = torch.stack([content[starts[i] // 2:starts[i] // 2 + size].double() for i in order])
    before, weighted_sums.BLOCK_ELEMENTS = weighted_sums.BLOCK_ELEMENTS, block
    try:
        rows = ExpertRows(content.view(torch.uint8), [starts[i] for i in order], shape, dtype)
        found = list(rows.weighted_sums(weight_n))
    finally:
        weighted_sums.BLOCK_ELEMENTS = before
    assert [row for part, _ in found for row in range(part.start, part.stop)] == list(range(shape[0]))
    mixed = torch.cat([part for _, part in found])
    assert mixed.dtype == dtype and list(mixed.shape) == shape
    assert rounded_once(mixed.flatten(), weight_n @ experts, weight_n @ experts.abs())


def lengthen_header(path: Path, more: int) -> None:
    """Add ``more`` spaces to the header, which moves all data by as many bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes((length + more).to_bytes(8, "little") + content[8:8 + length] + b" " * more + content[8 + length:])


def test_an_expert_of_share_zero_is_not_read() -> None:
    content = torch.tensor([1.0, 2.0, math.nan, math.inf], dtype=torch.bfloat16)
    rows = ExpertRows(content.view(torch.uint8), [0, 4], [2], torch.bfloat16)
    [(_, found)] = rows.weighted_sums(torch.tensor([0.5, 0.0], dtype=torch.float64))
    assert found.flatten().tolist() == [0.5, 1.0]


@pytest.mark.parametrize("family", each_family())
def test_mixing_in_16_bits_sets_the_same_weights_as_merging(family: str, tmp_path: Path) -> None:
    """Compare the matrices and biases of every family."""
    directory = grown_apart(tmp_path, family)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (tmp_path / "merged").mkdir()
    share_LN = torch.softmax(torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    merge(directory, tmp_path / "merged", share_LN)
    merged = load_model(tmp_path / "merged", torch.bfloat16).state_dict()
    with MixtureReader(directory) as mixture:
        mixed = MixedModel(mixture, torch.bfloat16, torch.device("cpu"))
        mixed.apply(share_LN)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in mixed.model.state_dict().items())


@pytest.mark.parametrize("shared_expert", [True, False])
@pytest.mark.parametrize(("shards", "shift"), [(1, 0), (2, 0), (1, 1)])
def test_a_merge_in_16_bits_is_the_mixture_rounded_once(
        shards: int, shift: int, shared_expert: bool, tmp_path: Path) -> None:
    """Experts are a table in one shard, or read block by block: shared and routed in two shards, or at odd offsets."""
    directory = grown_apart(tmp_path, shared_expert=shared_expert)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    shard_of = {name: f"{int('.experts.' in name) % shards}.safetensors" for name in weights}
    for shard in sorted(set(shard_of.values())):
        save_file({name: weights[name] for name in weights if shard_of[name] == shard}, directory / shard, {"format": "pt"})
    for path in directory.glob("*.safetensors"):
        lengthen_header(path, shift)
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": shard_of}))
    (tmp_path / "merged").mkdir()
    share_LN = torch.softmax(torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)
    merge(directory, tmp_path / "merged", share_LN)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    with MixtureReader(directory) as mixture:
        for layer in range(2):
            for tensor in mixture.expert_tensors(layer):
                assert (tensor.rows() is None) == (shift == 1 or (shards == 2 and shared_expert))
                experts = torch.stack([tensor.of_expert(expert).double() for expert in range(4)])
                exact = torch.tensordot(share_LN[layer], experts, 1)
                assert rounded_once(merged[tensor.name], exact, torch.tensordot(share_LN[layer], experts.abs(), 1))
