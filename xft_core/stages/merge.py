"""The merge stage: Mixture-of-Experts and mixing coefficients to a stock dense checkpoint, a few tensors at a time."""

import json
import math
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from xft_core.data.rows import load_rows
from xft_core.errors import CheckpointError
from xft_core.files.locate import find_model
from xft_core.mixing.adapter import ADAPTER, SHARED_WEIGHTS, shared_weights_plans, write_adapter
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.mixture import ExpertTensor, MixtureReader
from xft_core.models.config import DTYPES, NAMES_OF_CODE
from xft_core.models.loading import copy_beside_weights, load_model
from xft_core.models.safetensors_io import TensorPlan, write_checkpoint
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import MergeStage
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss


def run(config: MergeStage, workspace: Workspace) -> MergeMetrics:
    """Write the merged model and, where there is data, load it again as any user would and measure it."""
    weight_LN, source = load_coefficients(config.coefficients), find_model(config.model)
    parameters = merge(source, workspace.output, weight_LN)
    if config.export_adapter:
        export_adapter(source, workspace.output, weight_LN)
    held_out_nll = None
    if config.data:
        model = load_model(workspace.output, DTYPES[config.precision])
        held_out_nll = held_out_loss(model.to(device_for_work()), load_rows(config.data, "held_out")).nll
    return MergeMetrics(parameters=parameters, held_out_nll=held_out_nll)


def merge(source: Path, target: Path, weight_LN: torch.Tensor) -> int:
    """Write the dense model with FFNs sum_i weight_i W_i of the upcycled model ``source``; returns its parameters.

    Args:
        source: an upcycled model directory.
        target: an existing empty directory.
        weight_LN: share of every expert in every layer, the shared expert first; rows sum to one.

    Raises CheckpointError when the shares do not fit the model.
    """
    with MixtureReader(source) as mixture:
        _check_shares(mixture, weight_LN, source)
        family, layers = mixture.family, range(mixture.num_layers)
        mlps = tuple(prefix for layer in layers for prefix in (*family.ffn_prefixes(layer), f"{family.block_name(layer)}."))
        reader = mixture.reader
        plans = [reader.copy_plan(name) for name in reader.names() if not name.startswith(mlps)]
        for layer in range(mixture.num_layers):
            plans += [
                TensorPlan(tensor.name, tensor.shape, tensor.dtype, _mixed(mixture, tensor, weight_LN[layer]))
                for tensor in mixture.expert_tensors(layer)]
        return _write_dense(plans, mixture.dense_config, source, target)


def export_adapter(source: Path, target: Path, weight_LN: torch.Tensor) -> None:
    """Write the same merge of low-rank experts as a LoRA adapter into ``target``, beside the model that it is for: see
    mixing/adapter.py. Raises CheckpointError for experts with weights of their own."""
    with MixtureReader(source) as mixture:
        if mixture.upcycle.expert_rank is None:
            raise CheckpointError(
                f"The experts of {str(source)!r} have weights of their own (upcycle.expert_rank is empty): their merge is no "
                "low-rank change of anything. Turn merge.export_adapter off.")
        _check_shares(mixture, weight_LN, source)
        for name in (SHARED_WEIGHTS, ADAPTER):
            (target / name).mkdir()
        _write_dense(shared_weights_plans(mixture), mixture.dense_config, source, target / SHARED_WEIGHTS)
        write_adapter(mixture, weight_LN, target / ADAPTER)


def _check_shares(mixture: MixtureReader, weight_LN: torch.Tensor, source: Path) -> None:
    if list(weight_LN.shape) != [mixture.num_layers, mixture.num_experts]:
        raise CheckpointError(
            f"The coefficients are for {weight_LN.shape[0]} layers of {weight_LN.shape[1]} experts, {str(source)!r} has "
            f"{mixture.num_layers} layers of {mixture.num_experts}. Use the coefficients that were learned for it.")
    assert torch.allclose(weight_LN.sum(1), torch.ones(len(weight_LN), dtype=weight_LN.dtype))


def _write_dense(plans: list[TensorPlan], dense_config: dict[str, Any], source: Path, target: Path) -> int:
    """Write a dense checkpoint with the tokenizer of ``source``; returns its parameters."""
    plans.sort(key=lambda plan: plan.name)  # a layer's tensors follow each other, and copies alternate with sums
    write_checkpoint(target, plans)
    # Plain transformers loads all of a model in the dtype of its config: the one that holds every tensor without rounding.
    dtype = str(reduce(torch.promote_types, {plan.dtype for plan in plans})).removeprefix("torch.")
    left_out = NAMES_OF_CODE | {"torch_dtype"}  # the merged model is transformers' own, and comes with no code
    content = {name: value for name, value in dense_config.items() if name not in left_out} | {"dtype": dtype}
    (target / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    copy_beside_weights(source, target)
    return sum(math.prod(plan.shape) for plan in plans)


def _mixed(mixture: MixtureReader, tensor: ExpertTensor, weight_N: torch.Tensor) -> Any:
    return lambda: (block for _, block in mixture.mixed(tensor, weight_N, tensor.dtype, torch.device("cpu")))
