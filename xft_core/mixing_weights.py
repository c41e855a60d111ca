"""From mixing coefficients to one dense FFN, and back from its gradient to theirs.

    W = lambda W_0 + (1 - lambda) sum_{i=1}^{N-1} softmax(alpha)_i W_i         (arXiv 2404.15247, eq. 4)

computed as W_0 + sum_i c_i (W_i - W_0), which is the same since the c_i sum to one, and exact for equal experts.
Experts are read one tensor of one layer at a time. Shape suffixes: L layers, N experts (the shared one first), R routed.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

from xft_core.checkpoint import CheckpointReader
from xft_core.families import Family, family_of
from xft_core.models import check_tensors, dense_config_of, transformers_config, upcycle_config_of

BLOCK_ELEMENTS = 2**15  # of one expert, worked on at once on a CPU: 128 KiB in fp32


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

    def mixed(self, tensor: "ExpertTensor", weight_N: torch.Tensor, device: torch.device) -> torch.Tensor:
        """sum_i weight_i W_i on ``device`` in fp32 (fp64 if the experts are): W_0 + sum_i weight_i (W_i - W_0)."""
        first, *others = (tensor.of_expert(expert) for expert in range(self.num_experts))
        total = torch.empty(first.shape, dtype=_wide_dtype(first), device=device)
        for rows in _blocks(first, device):
            first_rows, total_rows = first[rows].to(total), total[rows]
            total_rows.copy_(first_rows)
            for other, weight in zip(others, weight_N.tolist()[1:], strict=True):
                if weight:
                    total_rows.add_(torch.sub(other[rows].to(device), first_rows), alpha=weight)
        return total

    def gradient(self, tensor: "ExpertTensor", gradient: torch.Tensor) -> torch.Tensor:
        """<dL/dW, W_i - W_0> for every expert, fp64, shape N, where the gradient is: dL/dc_i up to what is the same for
        all i."""
        first, *others = (tensor.of_expert(expert) for expert in range(self.num_experts))
        product_N = torch.zeros(self.num_experts, dtype=torch.float64, device=gradient.device)
        for rows in _blocks(first, gradient.device):
            gradient_rows = gradient[rows].to(_wide_dtype(gradient))
            first_rows = first[rows].to(gradient_rows)
            for expert, other in enumerate(others, start=1):
                difference = torch.sub(other[rows].to(gradient.device), first_rows)
                product_N[expert] += torch.sum(difference.mul_(gradient_rows), dtype=torch.float64)
        return product_N


class ExpertTensor:
    """One dense FFN tensor of one layer, for any expert."""

    def __init__(self, mixture: MixtureReader, mlp: str, source: str, stacked: str, rows: tuple[int, int] | None) -> None:
        self._mixture, self._mlp, self._source, self._stacked, self._rows = mixture, mlp, source, stacked, rows

    def of_expert(self, expert: int) -> torch.Tensor:
        """The tensor of expert ``expert``; with a shared expert that is number 0."""
        reader, shared = self._mixture.reader, self._mixture.upcycle.shared_expert
        if self._rows is None:
            return reader.get(f"{self._mlp}.{self._source}")
        if shared and expert == 0:
            return reader.get(f"{self._mlp}.shared_expert.{self._source}")
        return reader.row(f"{self._mlp}.experts.{self._stacked}", expert - int(shared), slice(*self._rows))


def mixing_weights(alpha_LR: torch.Tensor, shared_weight_L: torch.Tensor | None) -> torch.Tensor:
    """The share of every expert, shape L,N, rows summing to one: (lambda, (1 - lambda) softmax(alpha)); without a
    shared expert softmax(alpha)."""
    routed_LR = torch.softmax(alpha_LR, dim=-1)
    if shared_weight_L is None:
        return routed_LR
    return torch.cat([shared_weight_L[:, None], (1 - shared_weight_L)[:, None] * routed_LR], dim=1)


def _wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(tensor: torch.Tensor, device: torch.device) -> list[slice]:
    """Rows to work on at once: on a CPU as many as its cache holds while all experts pass by, elsewhere all."""
    num_rows = len(tensor)
    size = num_rows if device.type != "cpu" else max(1, BLOCK_ELEMENTS * num_rows // tensor.numel())
    return [slice(start, start + size) for start in range(0, num_rows, size)]
