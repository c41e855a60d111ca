"""Several threads write a checkpoint part by part, and safetensors reads it back."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xft_core.errors import CheckpointError
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, write_checkpoint


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def plan(name: str, tensor: torch.Tensor, rows: int) -> TensorPlan:
    return TensorPlan(name, list(tensor.shape), tensor.dtype, lambda: tensor.split(rows) if tensor.dim() else [tensor])


@pytest.mark.parametrize("max_shard_bytes", [500, 10**9])
def test_tensors_come_back_whatever_their_parts_and_shards(
        max_shard_bytes: int, tmp_path: Path, four_threads: None) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{number:02d}.{dtype}": torch.randn([number, 7], generator=generator).to(dtype)
        for number in range(1, 20) for dtype in (torch.float32, torch.bfloat16, torch.float64)}
    tensors |= {"scalar": torch.tensor(3.5), "turned": torch.randn(5, 3, generator=generator).t()}
    total = write_checkpoint(tmp_path, [plan(name, tensor, 4) for name, tensor in tensors.items()], max_shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 2) == (max_shard_bytes == 500)
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert total == sum(tensor.nbytes for tensor in tensors.values())
    with CheckpointReader(tmp_path) as reader:
        assert torch.equal(reader.get("turned"), tensors["turned"])
    assert torch.get_num_threads() == 4


def test_an_error_in_a_part_is_raised_and_ends_the_writing(tmp_path: Path, four_threads: None) -> None:
    made = []

    def parts(number: int) -> list[torch.Tensor]:
        made.append(number)
        if number == 0:
            raise CheckpointError("no such tensor")
        return [torch.zeros(2**16)]

    plans = [TensorPlan(str(number), [2**16], torch.float32, partial(parts, number)) for number in range(500)]
    with pytest.raises(CheckpointError, match="no such tensor"):
        write_checkpoint(tmp_path, plans)
    assert len(made) < 500
    assert torch.get_num_threads() == 4
