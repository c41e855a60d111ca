"""The merge stage: merge a Mixture-of-Experts by mixing coefficients into a stock dense checkpoint, a few tensors at a time."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError, RecipeError
from xft_core.files.locate import find_model
from xft_core.mixing.adapter import ADAPTER, SHARED_WEIGHTS, shared_weights_plans, write_adapter
from xft_core.mixing.coefficients import Coefficients, load_coefficients, load_mixing
from xft_core.mixing.delta_scale import is_scaled, scaled, scaled_tensor
from xft_core.mixing.mixture import ExpertTensor, MixtureReader, NeuronShares
from xft_core.mixing.operators.merged import load_layer
from xft_core.models.config import DTYPES, save_dense_config
from xft_core.models.loading import copy_beside_weights, load_model
from xft_core.models.safetensors_io import TensorPlan, write_checkpoint
from xft_core.models.tensor_names import NAME as TENSOR_NAMES
from xft_core.models.tensor_names import with_tensor_names
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import MergeStage
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.results.mix import CoefficientsFile
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss


def run(config: MergeStage, workspace: Workspace) -> MergeMetrics:
    """Write the merged model and, if there is data, load it again as any user would and measure it."""
    coefficients, content = load_mixing(config.coefficients), CoefficientsFile.read(config.coefficients)
    if coefficients.needs_base and config.base is None:
        raise RecipeError(
            f"The coefficients in {str(config.coefficients)!r} have a delta_scale, so merging needs the base model: set base "
            "to it.")
    base = find_model(config.base) if config.base and coefficients.needs_base else None
    ffns = config.coefficients if content and content.merged_ffns else None
    source = find_model(config.model)
    parameters = merge(source, workspace.output, coefficients, base, ffns)
    if config.export_adapter:
        export_adapter(source, workspace.output, load_coefficients(config.coefficients))
    held_out_nll = None
    if config.data:
        model = load_model(workspace.output, DTYPES[config.precision])
        held_out_nll = held_out_loss(model.to(device_for_work()), load_rows(config.data, "held_out")).nll
    return MergeMetrics(parameters=parameters, held_out_nll=held_out_nll)


def merge(
    source: Path, target: Path, mixing: torch.Tensor | Coefficients, base: Path | None = None, ffns: Path | None = None,
) -> int:
    """Write the dense model with FFNs sum_i weight_i W_i of the upcycled model ``source``; returns its parameters.

    Args:
        source: an upcycled model directory.
        target: an existing empty directory.
        mixing: share of every expert in every layer, fp64 L,N, the shared expert first, rows summing to one; or the complete
            coefficients of a mix stage.
        base: the dense model that the experts come from, if the coefficients give it a share.
        ffns: directory with FFNs that an operator merged, used instead of the weighted sums.

    Raises CheckpointError if the shares or the FFNs do not fit the model.
    """
    coefficients = mixing if isinstance(mixing, Coefficients) else Coefficients(mixing)
    weight, gamma_L, outside_scale = coefficients.weight, coefficients.delta_scale_L, coefficients.outside_scale
    assert base is not None or not coefficients.needs_base
    with MixtureReader(source, base) as mixture:
        _check_shares(mixture, weight, source)
        if base and gamma_L is not None:
            weight = scaled(weight, gamma_L)
        family, layers = mixture.family, range(mixture.num_layers)
        mlps = tuple(prefix for layer in layers for prefix in (*family.ffn_prefixes(layer), f"{family.block_name(layer)}."))
        reader = mixture.reader
        plans = [
            reader.copy_plan(name) if outside_scale == 1 else _scaled(mixture, name, outside_scale)
            for name in reader.names() if not name.startswith(mlps)]
        for layer in range(mixture.num_layers):
            made = load_layer(ffns, layer) if ffns else None  # memory-mapped: read when needed
            plans += [
                TensorPlan(
                    tensor.name, tensor.shape, tensor.dtype,
                    _mixed(mixture, tensor, coefficients.granularity.shares_of(tensor, weight[layer])) if made is None
                    else _made(tensor, made))
                for tensor in mixture.expert_tensors(layer)]
        return _write_dense(plans, mixture.dense_config, source, target)


def export_adapter(source: Path, target: Path, weight_LN: torch.Tensor) -> None:
    """Write the same merge of low-rank experts as a LoRA adapter into ``target``, next to the model that it applies to: see
    mixing/adapter.py. Raises CheckpointError for experts with full weights."""
    with MixtureReader(source) as mixture:
        if mixture.upcycle.expert_rank is None:
            raise CheckpointError(
                f"The experts of {str(source)!r} have full weights (upcycle.expert_rank is empty), so their merge is not a "
                "low-rank change. Turn merge.export_adapter off.")
        _check_shares(mixture, weight_LN, source)
        for name in (SHARED_WEIGHTS, ADAPTER):
            (target / name).mkdir()
        _write_dense(shared_weights_plans(mixture), mixture.dense_config, source, target / SHARED_WEIGHTS)
        write_adapter(mixture, weight_LN, target / ADAPTER)


def _check_shares(mixture: MixtureReader, weight: torch.Tensor, source: Path) -> None:
    if [len(weight), weight.shape[-1]] != [mixture.num_layers, mixture.num_experts]:
        raise CheckpointError(
            f"The coefficients are for {len(weight)} layers of {weight.shape[-1]} experts, but {str(source)!r} has "
            f"{mixture.num_layers} layers of {mixture.num_experts}. Use the coefficients that were learned for this model.")
    assert torch.allclose(weight.sum(-1), torch.ones(weight.shape[:-1], dtype=weight.dtype))


def _write_dense(plans: list[TensorPlan], dense_config: dict[str, Any], source: Path, target: Path) -> int:
    """Write a dense checkpoint with the tokenizer of ``source``; returns its parameters."""
    plans = with_tensor_names(plans, source)
    plans.sort(key=lambda plan: plan.name)  # a layer's tensors follow each other, and copies alternate with sums
    write_checkpoint(target, plans)
    save_dense_config(target, dense_config, plans)
    copy_beside_weights(source, target)
    (target / TENSOR_NAMES).unlink(missing_ok=True)
    return sum(math.prod(plan.shape) for plan in plans)


def _made(tensor: ExpertTensor, made: dict[str, torch.Tensor]) -> Any:
    """Return a tensor that an operator merged. Raises CheckpointError for a tensor of another model."""
    found = made.get(tensor.name)
    if found is None or list(found.shape) != tensor.shape or found.dtype != tensor.dtype:
        raise CheckpointError(
            f"The merged FFNs do not fit the model: {tensor.name!r} is {tensor.dtype} {tensor.shape} in the model. Use the "
            "FFNs that were merged from this model.")
    return lambda: [found]


def _mixed(mixture: MixtureReader, tensor: ExpertTensor, shares: torch.Tensor | NeuronShares) -> Any:
    return lambda: (block for _, block in mixture.mixed(tensor, shares, tensor.dtype, torch.device("cpu")))


def _scaled(mixture: MixtureReader, name: str, outside_scale: float) -> TensorPlan:
    plan = mixture.reader.copy_plan(name)
    if not is_scaled(mixture.reader.get(name)):
        return plan
    return replace(plan, parts=lambda: (block for _, block in scaled_tensor(mixture, name, outside_scale)))
