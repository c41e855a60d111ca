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
from xft_core.models import dense_config_of, transformers_config, upcycle_config_of


class MixtureReader:
    """The FFN tensors of an upcycled checkpoint, expert by expert, under their dense names. A context manager."""

    def __init__(self, directory: Path) -> None:
        self.upcycle = upcycle_config_of(directory)
        self.dense_config = dense_config_of(directory)
        self.family: Family = family_of(self.dense_config["model_type"])
        self.num_layers = int(transformers_config(self.dense_config).num_hidden_layers)
        self.reader = CheckpointReader(directory)

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
        first = _wide(tensor.of_expert(0).to(device))
        total = first.clone()
        for expert, weight in enumerate(weight_N.tolist()):
            if expert and weight:
                total.add_(_wide(tensor.of_expert(expert).to(device)) - first, alpha=weight)
        return total

    def gradient(self, tensor: "ExpertTensor", gradient: torch.Tensor) -> torch.Tensor:
        """<dL/dW, W_i - W_0> for every expert, fp64, shape N, where the gradient is: dL/dc_i up to what is the same for
        all i."""
        wide = _wide(gradient)
        first = tensor.of_expert(0).to(wide)
        products = [torch.zeros((), dtype=torch.float64, device=wide.device)]
        for expert in range(1, self.num_experts):
            products.append(torch.sum(wide * (tensor.of_expert(expert).to(wide) - first), dtype=torch.float64))
        return torch.stack(products)


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


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
