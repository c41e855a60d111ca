"""The FFNs that an operator computes, one layer in memory at a time. The mix stage writes a file for each layer, and the merge
stage reads them.

A layer's file is written under a temporary name and moved into place, so layers that exist after a kill are not computed again.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from xft_core.data.rows import Rows
from xft_core.errors import ArtifactError, CheckpointError
from xft_core.files.digests import digest_of
from xft_core.mixing.mixture import ExpertTensor, MixtureReader
from xft_core.mixing.operators.calibration import (
    Experts,
    ExpertStatistics,
    fisher_statistics,
    gram_statistics,
    layer_groups,
)
from xft_core.mixing.operators.closed_forms import fisher, regmean
from xft_core.mixing.operators.task_vectors import dare, della, model_stock, task_arithmetic, ties
from xft_core.models.config import dense_config_of, is_moe
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.recipe.sections import MergeConfig


def layer_file(layer: int) -> str:
    """Name of the file with the FFN of one layer."""
    return f"ffn-{layer:05d}.safetensors"


def load_layer(directory: Path, layer: int) -> dict[str, torch.Tensor]:
    """The FFN of one layer by the dense checkpoint's names. Raises ArtifactError if it is missing or damaged."""
    try:
        return load_file(directory / layer_file(layer))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{str(directory / layer_file(layer))!r} cannot be read: {error}. Delete the directory to rebuild it.") from None


class BaseModel:
    """The dense model that the experts come from. A context manager.

    Raises CheckpointError for a model whose form differs from that of the experts.
    """

    def __init__(self, directory: Path, mixture: MixtureReader) -> None:
        if is_moe(directory):
            raise CheckpointError(f"{str(directory)!r} is a Mixture-of-Experts. Give the dense model it was upcycled from.")
        self.reader = CheckpointReader(directory)
        dense_config_of(self.reader)
        for layer in range(mixture.num_layers):
            for tensor in mixture.expert_tensors(layer):
                found = self.reader.shape(tensor.name) if tensor.name in self.reader else "missing"
                if found != tensor.shape:
                    raise CheckpointError(
                        f"{str(directory)!r} is not the dense model of these experts: {tensor.name!r} is {found} in it, "
                        f"{tensor.shape} in them.")

    def __enter__(self) -> "BaseModel":
        return self

    def __exit__(self, *raised: object) -> None:
        self.reader.__exit__(None, None, None)

    def get(self, tensor: ExpertTensor) -> torch.Tensor:
        """The base model's tensor of this name."""
        return self.reader.get(tensor.name)


def merge_on_deltas(
    mixture: MixtureReader, base: BaseModel, merge: MergeConfig, weight_LN: torch.Tensor, seed: int, directory: Path,
) -> None:
    """Write W = W_base + scale * operator(W_i - W_base) of every FFN tensor into ``directory``, layer by layer."""
    for layer in _missing(range(mixture.num_layers), directory):
        made = {}
        for tensor in mixture.expert_tensors(layer):
            wide = _wide(tensor.dtype)
            base_X = base.get(tensor).to(wide)
            delta_NX = torch.stack([tensor.of_expert(expert).to(wide) - base_X for expert in range(mixture.num_experts)])
            added_X = _added(merge, delta_NX, weight_LN[layer], seed, tensor.name)
            made[tensor.name] = (base_X + merge.scale * added_X).to(tensor.dtype).contiguous()
        _write(directory, layer, made)


def merge_in_closed_form(
    mixture: MixtureReader, source: Path, dense: PreTrainedModel, rows: Rows, merge: MergeConfig, weight_LN: torch.Tensor,
    directory: Path,
) -> torch.Tensor:
    """Write the result of RegMean or Fisher merging of every FFN into ``directory``, layer by layer.

    Under RegMean, biases get their mean weighted by the experts' summed routing weights, as matrices do if the Gram matrices
    are proportional. Returns the shares, fp64 L,N: those weights for RegMean, ``weight_LN`` for Fisher merging.

    Args:
        source: the Mixture-of-Experts.
        dense: its dense model, for the activation; its weights are not used.
    """
    shares_LN = weight_LN.clone()
    experts = Experts(mixture, dense)
    moe: PreTrainedModel | None = None
    for layers in layer_groups(mixture, merge.method):
        if not _missing(layers, directory):
            shares = [load_layer(directory, layer)["shares"] for layer in layers]
            shares_LN[layers.start:layers.stop] = torch.stack(shares)
            continue
        if moe is None:
            moe = load_model(source, dense.dtype).to(dense.device)
        collect = gram_statistics if merge.method == "regmean" else fisher_statistics
        found = collect(moe, experts, rows, layers, merge.calibration_rows)
        for layer in layers:
            statistics = found.pop(layer)
            if merge.method == "regmean":
                shares_LN[layer] = statistics.weight_N / statistics.weight_N.sum()
            made = {
                tensor.name: _solved(
                    merge.method, tensor, statistics, shares_LN[layer], mixture.family.transposed).to(tensor.dtype).contiguous()
                for tensor in mixture.expert_tensors(layer)}
            _write(directory, layer, made | {"shares": shares_LN[layer].clone()})
    return shares_LN


def _solved(
    method: str, tensor: ExpertTensor, statistics: ExpertStatistics, weight_N: torch.Tensor, transposed: bool,
) -> torch.Tensor:
    """The merged tensor. ``transposed``: the family's matrices are input by output."""
    experts = [tensor.of_expert(expert) for expert in range(len(weight_N))]
    if method == "fisher":
        return fisher(torch.stack(experts), statistics.fisher[tensor.name].cpu(), weight_N)
    if tensor.name in statistics.gram and transposed:
        return regmean([expert.t() for expert in experts], statistics.gram[tensor.name].cpu()).t()
    if tensor.name in statistics.gram:
        return regmean(experts, statistics.gram[tensor.name].cpu())
    return torch.tensordot(weight_N, torch.stack(experts).double(), 1)


def _added(merge: MergeConfig, delta_NX: torch.Tensor, weight_N: torch.Tensor, seed: int, name: str) -> torch.Tensor:
    if merge.method == "task_arithmetic":
        return task_arithmetic(delta_NX, weight_N)
    if merge.method == "ties":
        return ties(delta_NX, weight_N, merge.density)
    if merge.method == "model_stock":
        return model_stock(delta_NX)
    generator = torch.Generator().manual_seed(int(digest_of([seed, name])[:15], 16))  # one per tensor: order plays no part
    draw_NX = torch.rand(delta_NX.shape, generator=generator, dtype=delta_NX.dtype)
    if merge.method == "dare":
        return dare(delta_NX, weight_N, merge.density, draw_NX)
    assert merge.method == "della"
    return della(delta_NX, weight_N, merge.density, merge.density_spread, draw_NX)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the sums: twice as wide, as in mixture.py."""
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def _missing(layers: range, directory: Path) -> list[int]:
    """The layers that have no file yet."""
    return [layer for layer in layers if not (directory / layer_file(layer)).is_file()]


def _write(directory: Path, layer: int, tensors: dict[str, torch.Tensor]) -> None:
    path = directory / layer_file(layer)
    cut_short = path.with_suffix(".tmp")
    save_file(tensors, cut_short)
    cut_short.replace(path)
