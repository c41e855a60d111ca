"""From mixing coefficients to one dense FFN, and back from its gradient to theirs.

    W = lambda W_0 + (1 - lambda) sum_{i=1}^{N-1} softmax(alpha)_i W_i         (arXiv 2404.15247, eq. 4)

summed in a dtype twice as wide as the experts' and rounded once: equal experts give themselves, bit for bit. Experts are
read a block of rows of one tensor at a time.
Shape suffixes: L layers, N experts (the shared one first), n some of them, R routed, B elements of a block.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

from xft_core.checkpoint import CheckpointReader
from xft_core.families import Family, family_of
from xft_core.models import check_tensors, dense_config_of, transformers_config, upcycle_config_of

BLOCK_ELEMENTS = 2**18  # of all experts, worked on at once on a CPU: 1 MiB in fp32, which a core's cache holds
ACCELERATOR_BLOCK_ELEMENTS = 2**25  # the same elsewhere: 128 MiB in fp32


class MixtureReader:
    """The FFN tensors of an upcycled checkpoint, expert by expert, under their dense names. A context manager."""

    def __init__(self, directory: Path) -> None:
        self.upcycle = upcycle_config_of(directory)
        self.dense_config = dense_config_of(directory)
        self.family: Family = family_of(self.dense_config["model_type"])
        self.num_layers = int(transformers_config(self.dense_config).num_hidden_layers)
        self.reader = CheckpointReader(directory)
        check_tensors(self.reader, self.dense_config, self.upcycle)

    def __enter__(self) -> "MixtureReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.reader.__exit__(kind, error, trace)

    @property
    def num_experts(self) -> int:
        """N, the shared expert included."""
        return self.upcycle.num_experts

    def expert_tensors(self, layer: int) -> Iterator[tuple[str, list[int], torch.dtype, "ExpertTensor"]]:
        """``(dense name, shape, dtype, tensor by expert)`` of one layer's FFN, in the dense checkpoint's names."""
        mlp = self.family.mlp_name(layer)
        stored_once = f"{mlp}.{self.family.down}.weight" in self.reader
        bias_name = f"{mlp}.{self.family.down}.bias" if stored_once else f"{mlp}.experts.down_proj_bias"
        for stacked, sources in self.family.expert_sources(bias_name in self.reader).items():
            start = 0
            for source in sources:
                name = f"{mlp}.{source}"
                if stored_once:
                    shape, dtype = self.reader.shape(name), self.reader.dtype(name)
                    rows = None
                else:
                    stack = f"{mlp}.experts.{stacked}"
                    whole, dtype = self.reader.shape(stack)[1:], self.reader.dtype(stack)
                    num_rows = whole[0] // len(sources)
                    shape, rows = [num_rows, *whole[1:]], (start, start + num_rows)
                    start += num_rows
                yield name, shape, dtype, ExpertTensor(self, mlp, source, stacked, rows)

    def mixed(
        self, tensor: "ExpertTensor", weight_N: torch.Tensor, device: torch.device,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """sum_i weight_i W_i on ``device``, as ``(rows, block of these rows)``, in fp32 (fp64 if the experts are fp32)."""
        stacks = tensor.stacks()
        used = [
            (stack, weight_n) for stack, weight_n in zip(stacks, weight_N.split([len(stack) for stack in stacks]), strict=True)
            if weight_n.any()]
        wide = torch.float32 if stacks[0].dtype.itemsize < 4 else torch.float64
        weight_n = torch.cat([weight_n for _, weight_n in used]).to(device, wide)
        for rows, experts_nB in _blocks([stack for stack, _ in used], wide, device):
            yield rows, torch.mv(experts_nB.t(), weight_n).view(-1, *stacks[0].shape[2:])

    def gradient(self, tensor: "ExpertTensor", gradient: torch.Tensor) -> torch.Tensor:
        """<dL/dW, W_i - W_0> for every expert, fp64, shape N, where the gradient is: dL/dc_i up to what is the same for
        all i."""
        wide = torch.promote_types(gradient.dtype, torch.float32)
        product_N = torch.zeros(self.num_experts, dtype=torch.float64, device=gradient.device)
        for rows, experts_NB in _blocks(tensor.stacks(), wide, gradient.device):
            experts_NB[1:] -= experts_NB[0]
            product_N[1:] += torch.mv(experts_NB[1:], gradient[rows].flatten().to(wide))
        return product_N


class ExpertTensor:
    """One dense FFN tensor of one layer, for any expert."""

    def __init__(self, mixture: MixtureReader, mlp: str, source: str, stacked: str, rows: tuple[int, int] | None) -> None:
        self._mixture, self._mlp, self._source, self._stacked, self._rows = mixture, mlp, source, stacked, rows

    def stacks(self) -> list[torch.Tensor]:
        """Views of the mapped checkpoint that together hold the tensor of every expert, the shared one first: shapes n,..."""
        reader = self._mixture.reader
        if self._rows is None:
            single = reader.get(f"{self._mlp}.{self._source}")
            return [single.expand(self._mixture.num_experts, *single.shape)]
        routed = reader.get(f"{self._mlp}.experts.{self._stacked}")[:, slice(*self._rows)]
        if self._mixture.upcycle.shared_expert:
            return [reader.get(f"{self._mlp}.shared_expert.{self._source}")[None], routed]
        return [routed]

    def of_expert(self, expert: int) -> torch.Tensor:
        """The tensor of expert ``expert``; with a shared expert that is number 0."""
        return [single for stack in self.stacks() for single in stack][expert]


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
