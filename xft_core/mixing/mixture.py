"""From mixing coefficients to one dense FFN, and back from its gradient to theirs.

    W = lambda W_0 + (1 - lambda) sum_{i=1}^{N-1} softmax(alpha)_i W_i         (arXiv 2404.15247, eq. 4)

summed in a dtype twice as wide as the experts' and rounded once: equal experts give themselves, bit for bit. Experts are
read a block of rows of one tensor at a time; on a CPU those of 16 bits are summed where they are mapped (expert_rows.py).
Shape suffixes: L layers, N experts (the shared one first), n some of them, R routed, B elements of a block.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

from xft_core.families import Family
from xft_core.mixing.low_rank import Changes
from xft_core.mixing.weighted_sums import ExpertRows
from xft_core.models.config import dense_config_of, transformers_config, upcycle_config_of
from xft_core.models.discovery import family_of
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.models.upcycled import HOLDERS, check_tensors

BLOCK_ELEMENTS = 2**18  # of all experts, worked on at once on a CPU: 1 MiB in fp32, which a core's cache holds
ACCELERATOR_BLOCK_ELEMENTS = 2**25  # the same elsewhere: 128 MiB in fp32


class MixtureReader:
    """The FFN tensors of an upcycled checkpoint, expert by expert, under their dense names. A context manager."""

    def __init__(self, directory: Path) -> None:
        self.upcycle = upcycle_config_of(directory)
        self.reader = CheckpointReader(directory)
        self.dense_config = dense_config_of(self.reader)
        config = transformers_config(self.dense_config)
        self.family: Family = family_of(config)
        self.num_layers = int(config.num_hidden_layers)
        check_tensors(self.reader, self.dense_config, self.upcycle)

    def __enter__(self) -> "MixtureReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reader.__exit__(kind, error, trace)

    @property
    def num_experts(self) -> int:
        """N, the shared expert included."""
        return self.upcycle.num_experts

    def expert_tensors(self, layer: int) -> Iterator["ExpertTensor"]:
        """The tensors of one layer's FFN, in the dense checkpoint's names."""
        if self.upcycle.expert_rank is not None:
            yield from self.low_rank_tensors(layer)
            return
        mlp, block = self.family.mlp_name(layer), self.family.block_name(layer)
        stored_once = f"{mlp}.{self.family.down}.weight" in self.reader
        bias_name = f"{mlp}.{self.family.down}.bias" if stored_once else f"{block}.experts.down_proj_bias"
        for stacked, sources in self.family.expert_sources(bias_name in self.reader).items():
            for number, source in enumerate(sources):
                name = f"{mlp}.{source}"
                if stored_once:
                    yield ExpertTensor(self, name, [name], self.reader.shape(name), None)
                    continue
                stack = f"{block}.experts.{stacked}"
                _, num_rows, *row = self.reader.shape(stack)
                num_rows //= len(sources)
                shared = [f"{block}.shared_expert.{source}"] if self.upcycle.shared_expert else []
                yield ExpertTensor(self, name, [*shared, stack], [num_rows, *row], number * num_rows)

    def low_rank_tensors(self, layer: int) -> Iterator["LowRankTensor"]:
        """The same of low-rank experts."""
        mlp, block = self.family.mlp_name(layer), self.family.block_name(layer)
        holders = [f"{mlp}.", *(f"{block}.{holder}" for holder in HOLDERS)]
        holder = next(holder for holder in holders if f"{holder}{self.family.down}.weight" in self.reader)
        for kind in ("weight", "bias"):
            for source in (f"{layer_name}.{kind}" for layer_name in (*self.family.up, self.family.down)):
                if f"{holder}{source}" in self.reader:
                    changes = Changes(self.reader, block, source, self.upcycle)
                    yield LowRankTensor(self, f"{mlp}.{source}", holder + source, changes)

    def mixed(
        self, tensor: "ExpertTensor", weight_N: torch.Tensor, dtype: torch.dtype, device: torch.device,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """sum_i weight_i W_i for fp64 weights, in ``dtype`` on ``device``, as ``(rows, block of these rows)``."""
        if isinstance(tensor, LowRankTensor):
            yield slice(0, tensor.shape[0]), tensor.mixed(weight_N, device).to(dtype)
            return
        rows = tensor.rows() if device.type == "cpu" and dtype == tensor.dtype else None
        if rows:
            yield from rows.weighted_sums(weight_N)
            return
        stacks = tensor.stacks()
        used = [
            (stack, weight_n) for stack, weight_n in zip(stacks, weight_N.split([len(stack) for stack in stacks]), strict=True)
            if weight_n.any()]
        wide = torch.float32 if tensor.dtype.itemsize < 4 else torch.float64
        weight_n = torch.cat([weight_n for _, weight_n in used]).to(device, wide)
        for block, experts_nB in _blocks([stack for stack, _ in used], wide, device):
            yield block, torch.mv(experts_nB.t(), weight_n).view(-1, *tensor.shape[1:]).to(dtype)

    def gradient(self, tensor: "ExpertTensor", gradient: torch.Tensor) -> torch.Tensor:
        """<dL/dW, W_i - W_0> for every expert, fp64, shape N, where the gradient is: dL/dc_i up to what is the same for
        all i."""
        if isinstance(tensor, LowRankTensor):
            return tensor.changes.gradient(gradient)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        product_N = torch.zeros(self.num_experts, dtype=torch.float64, device=gradient.device)
        for rows, experts_NB in _blocks(tensor.stacks(), wide, gradient.device):
            experts_NB[1:] -= experts_NB[0]
            product_N[1:] += torch.mv(experts_NB[1:], gradient[rows].flatten().to(wide))
        return product_N


class ExpertTensor:
    """One dense FFN tensor of one layer, for any expert: its ``name``, ``shape`` and ``dtype`` are the dense model's."""

    def __init__(
        self, mixture: MixtureReader, name: str, stored: list[str], shape: list[int], first_row: int | None,
    ) -> None:
        self.name, self.shape, self.dtype = name, shape, mixture.reader.dtype(stored[-1])
        self._mixture, self._stored, self._first_row = mixture, stored, first_row

    def stacks(self) -> list[torch.Tensor]:
        """Views of the mapped checkpoint that together hold the tensor of every expert, the shared one first: shapes n,..."""
        *shared, last = map(self._mixture.reader.get, self._stored)
        if self._first_row is None:
            return [last.expand(self._mixture.num_experts, *last.shape)]
        return [single[None] for single in shared] + [last[:, self._first_row:self._first_row + self.shape[0]]]

    def rows(self) -> ExpertRows | None:
        """All experts as rows of one table, if they have 16 bits and lie in one shard."""
        reader, shards, starts = self._mixture.reader, [], []
        for name, stack in zip(self._stored, self.stacks(), strict=True):
            shard, start = reader.place(name)
            shards.append(shard)
            before = reader.get(name).storage_offset()
            starts += [start + (single.storage_offset() - before) * self.dtype.itemsize for single in stack]
        in_one = all(shard is shards[0] for shard in shards) and {reader.dtype(name) for name in self._stored} == {self.dtype}
        if not in_one or self.dtype.itemsize != 2 or any(start % 2 for start in starts):
            return None
        return ExpertRows(shards[0], starts, self.shape, self.dtype)

    def of_expert(self, expert: int) -> torch.Tensor:
        """The tensor of expert ``expert``; with a shared expert that is number 0."""
        return [single for stack in self.stacks() for single in stack][expert]


class LowRankTensor(ExpertTensor):
    """The same of low-rank experts: ``changes`` to ``stored_shared``, the tensor that they share. No stack is stored: what
    ``stacks`` and ``of_expert`` give is made when they are called."""

    def __init__(self, mixture: MixtureReader, name: str, stored_shared: str, changes: Changes) -> None:
        super().__init__(mixture, name, [stored_shared], mixture.reader.shape(stored_shared), None)
        self.stored_shared, self.changes = stored_shared, changes

    def mixed(self, weight_N: torch.Tensor, device: torch.device) -> torch.Tensor:
        """sum_i weight_i W_i, before it is rounded."""
        wide = torch.float32 if self.dtype.itemsize < 4 else torch.float64
        shared = self._mixture.reader.get(self.stored_shared).to(device, wide)
        return (shared * float(weight_N.sum())).add_(self.changes.mixed(weight_N, wide, device).view(shared.shape))

    def stacks(self) -> list[torch.Tensor]:
        """See ExpertTensor."""
        return [self.of_expert(expert)[None] for expert in range(self._mixture.num_experts)]

    def rows(self) -> None:
        """See ExpertTensor: there are none."""

    def of_expert(self, expert: int) -> torch.Tensor:
        """See ExpertTensor."""
        share_N = torch.eye(self._mixture.num_experts, dtype=torch.float64)[expert]
        return self.mixed(share_N, torch.device("cpu")).to(self.dtype)


def mixing_weights(alpha_LR: torch.Tensor, shared_weight_L: torch.Tensor | None) -> torch.Tensor:
    """The share of every expert, shape L,N, rows summing to one: (lambda, (1 - lambda) softmax(alpha)); without a
    shared expert softmax(alpha)."""
    routed_LR = torch.softmax(alpha_LR, dim=-1)
    if shared_weight_L is None:
        return routed_LR
    return torch.cat([shared_weight_L[:, None], (1 - shared_weight_L)[:, None] * routed_LR], dim=1)


def _blocks(
    stacks: list[torch.Tensor], dtype: torch.dtype, device: torch.device,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """``(rows, their elements in every expert)``, the latter on ``device`` in ``dtype``, of shape N,B and overwritten by
    the next: all experts pass by while a block is in the cache."""
    num_experts, (num_rows, *row) = sum(map(len, stacks)), stacks[0].shape[1:]
    elements = BLOCK_ELEMENTS if device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
    size = max(1, elements // (num_experts * math.prod(row)))
    buffer_NB = torch.empty(num_experts, min(size, num_rows) * math.prod(row), dtype=dtype, device=device)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        block_NB = buffer_NB[:, :(rows.stop - start) * math.prod(row)]
        for part_nB, stack in zip(block_NB.split([len(stack) for stack in stacks]), stacks, strict=True):
            part_nB.copy_(stack[:, rows].flatten(1).to(device))
        yield rows, block_NB
