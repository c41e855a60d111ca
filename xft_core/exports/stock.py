"""Write an upcycled model of a stock architecture (upcycle.normalization granite or qwen2_moe) under that architecture's names.

No number changes: tensors are renamed, concatenated or split along a dimension, as in the architecture's files.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from xft_core.errors import CheckpointError
from xft_core.exports.architectures import architecture_config
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.loading import copy_beside_weights
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, dtype_that_holds, write_checkpoint
from xft_core.models.tokenizer import keep_tokens

TRAINED_BY = "xft"  # field of config.json


def export_stock(source: Path, target: Path) -> None:
    """Write the upcycled model ``source`` into the empty directory ``target`` as a stock mixture.

    Raises CheckpointError if it was not trained in a stock architecture.
    """
    with MixtureReader(source) as mixture:
        upcycle, family, reader = mixture.upcycle, mixture.family, mixture.reader
        if not upcycle.is_stock:
            raise CheckpointError(
                f"{str(source)!r} was trained with upcycle.normalization {upcycle.normalization}, which no stock architecture "
                "has. Train it with granite or qwen2_moe, or export it with a modelling file (form code).")
        content = architecture_config(upcycle, mixture.dense_config)
        blocks = tuple(f"{family.block_name(layer)}." for layer in range(mixture.num_layers))
        plans = [reader.copy_plan(name) for name in reader.names() if not name.startswith(blocks)]
        of_block = _granite if upcycle.normalization == "granite" else _qwen2_moe
        for block in blocks:
            plans += of_block(reader, block, block.removesuffix(f"{family.block}."), upcycle.num_routed)
        write_checkpoint(target, sorted(plans, key=lambda plan: plan.name))
        content = {name: value for name, value in content.items() if name != "torch_dtype"} | {"dtype": dtype_that_holds(plans)}
    content |= {TRAINED_BY: {"down_scales": upcycle.down_scales}}  # so that merge_mixture refuses these scaled experts
    (target / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    copy_beside_weights(source, target)
    keep_tokens(source, target)


def _granite(reader: CheckpointReader, block: str, layer: str, num_routed: int) -> list[TensorPlan]:
    renamed = {
        "experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
        "experts.down_proj": "block_sparse_moe.output_linear.weight",
        "router.hidden.weight": "block_sparse_moe.router.layer.weight",
        "shared_expert.down_proj.weight": "shared_mlp.output_linear.weight"}
    plans = [reader.copy_plan(block + name, layer + new) for name, new in renamed.items()]
    both = [f"{block}shared_expert.{name}_proj.weight" for name in ("gate", "up")]
    rows, columns = reader.shape(both[0])
    return [*plans, TensorPlan(
        f"{layer}shared_mlp.input_linear.weight", [2 * rows, columns], reader.dtype(both[0]), lambda: map(reader.get, both))]


def _qwen2_moe(reader: CheckpointReader, block: str, layer: str, num_routed: int) -> list[TensorPlan]:
    renamed = {
        "router.hidden.weight": "mlp.gate.weight", "router.gate.weight": "mlp.shared_expert_gate.weight",
        **{f"shared_expert.{name}_proj.weight": f"mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")}}
    plans = [reader.copy_plan(block + name, layer + new) for name, new in renamed.items()]
    _, both, columns = reader.shape(f"{block}experts.gate_up_proj")
    half, dtype = both // 2, reader.dtype(f"{block}experts.down_proj")
    places = {
        "gate": ("gate_up_proj", slice(0, half)), "up": ("gate_up_proj", slice(half, both)), "down": ("down_proj", slice(None))}
    for expert in range(num_routed):
        for name, (stack, rows) in places.items():
            shape = [columns, half] if name == "down" else [half, columns]
            plans.append(TensorPlan(
                f"{layer}mlp.experts.{expert}.{name}_proj.weight", shape, dtype,
                _part(reader, f"{block}experts.{stack}", expert, rows)))
    return plans


def _part(reader: CheckpointReader, name: str, expert: int, rows: slice) -> Callable[[], list[torch.Tensor]]:
    return lambda: [reader.get(name)[expert, rows]]
