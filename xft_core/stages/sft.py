"""The sft stage: supervised fine-tuning of a dense model or a Mixture-of-Experts, with the same code."""

import gc
import logging
import math
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from xft_core.data.packing import PackedRows
from xft_core.data.response_end import load_response_ends
from xft_core.data.rows import Rows, load_rows
from xft_core.errors import CheckpointError, RecipeError
from xft_core.files.journal import append, read_appended
from xft_core.files.locate import find_model
from xft_core.models.config import DTYPES, dense_config_of, is_moe, transformers_config, upcycle_config_of
from xft_core.models.discovery import family_of
from xft_core.models.generation_defaults import add_end_tokens
from xft_core.models.loading import copy_beside_weights, load_model
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.models.tokenizer import load_tokenizer
from xft_core.models.upcycled import expanded, freeze_all_but_language, moe_blocks, save_moe
from xft_core.moe.balance import LayerStatistics
from xft_core.moe.delta_cosine import delta_cosine
from xft_core.planning.shape import read_shape
from xft_core.planning.work import matched_steps
from xft_core.recipe.sections import SftConfig, UpcycleConfig
from xft_core.recipe.step import ADAPTER, AVERAGE, SNAPSHOTS
from xft_core.runtime.device import device_for_work
from xft_core.runtime.group import is_first, leave_others, number_of_processes
from xft_core.stages.configs import SftStage
from xft_core.stages.own_rows import own_rows
from xft_core.store.checkpoints import PREFIX, step_of
from xft_core.store.curves import MetricsLog
from xft_core.store.results.curve import CurveValues
from xft_core.store.results.sft import LayerRouting, RouterFile, SftMetrics, TokenClassWeight
from xft_core.store.workspace import Workspace
from xft_core.training.adapters import add_adapters, merge_adapters, save_adapters
from xft_core.training.averaging import put_average
from xft_core.training.held_out import HeldOutLoss, check_rows_fit, held_out_loss
from xft_core.training.shared_weight import shared_weight_by_class
from xft_core.training.snapshots import NAME as SNAPSHOT
from xft_core.training.snapshots import snapshot_steps
from xft_core.training.trainer import WEIGHTS_NAME, put_weights, train

logger = logging.getLogger(__name__)


def run(config: SftStage, workspace: Workspace) -> SftMetrics | None:
    """Tune, measure the held-out loss before and after, and write the tuned model (for a MoE also router.json).

    The tuned model's generation_config.json lists the tokens that end the data's responses, so that its answers end there.
    With several processes, the first alone does everything except the tuning, with the entire model; the others return None.
    """
    source = find_model(config.model)
    training_rows = own_rows(config.data, config, config.seed, config.clusters)
    held_out_rows = load_rows(config.data, "held_out")
    longest = max(*training_rows.lengths(), *held_out_rows.lengths())
    model = _load(source, config)
    check_rows_fit(model, [training_rows, held_out_rows])
    metrics_log = MetricsLog(workspace.metrics_path)
    before = _loss_before(model, held_out_rows, workspace, metrics_log) if is_first() else math.nan
    together = number_of_processes() > 1
    model.to("cpu" if together else device_for_work())  # each process takes its shard from the host
    packs = family_of(model.config).packs
    if config.sft.packing and not packs and not family_of(model.config).reads_pictures:
        logger.warning(
            "sft: sft.packing has no effect for %s models: their attention does not separate packed examples. Each example "
            "gets its own sequence, so sft.batch_size counts examples", model.config.model_type)
    data = PackedRows(training_rows, longest, config.sft.packing and packs)
    sft = _with_matched_steps(config, source, data)
    training = train(model, data, sft, config.seed, workspace.checkpoints, metrics_log, config.checks, config.snapshots)
    if together:
        del model
        gc.collect()  # the training's objects refer to each other and keep their memory
        if not leave_others():
            return None
    assert training is not None  # this is the first process
    if together:
        model = _load(source, config)
        put_weights(model, workspace.checkpoints / f"{PREFIX}{training.steps}" / WEIGHTS_NAME)
        model.to(device_for_work())
    last = workspace.checkpoints / f"{PREFIX}{training.steps}"
    if config.snapshots:
        _save_snapshots(model, source, config, workspace.output, last, metrics_log, held_out_rows)
    if config.sft.adapter != "none":
        if config.sft.adapter_export:
            (workspace.output / ADAPTER).mkdir()
            save_adapters(model, config.sft, workspace.output / ADAPTER)
        merge_adapters(model)
    after = held_out_loss(model, held_out_rows)
    metrics_log.set(training.steps, CurveValues(held_out_nll=after.nll).flat())
    logger.info("sft: held-out loss %.4f after %d steps", after.nll, training.steps)
    _save(model, source, config, workspace.output, after)
    averaged = None
    if config.sft.average != "none":
        put_average(model, last)
        averaged = held_out_loss(model, held_out_rows)
        logger.info("sft: held-out loss %.4f of the average", averaged.nll)
        (workspace.output / AVERAGE).mkdir()
        _save(model, source, config, workspace.output / AVERAGE, averaged)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    layers = after.router
    has_shared = bool(layers) and layers[0].mean_shared_weight is not None
    return SftMetrics(
        **dict(training), held_out_nll_before=before, held_out_nll=after.nll, held_out_tokens=after.tokens,
        held_out_nll_average=averaged.nll if averaged else None, peak_memory_mb=peak,
        peak_device_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        router_entropy=sum(layer.entropy for layer in layers) / len(layers) if layers else None,
        expert_load_min=min(min(layer.load) for layer in layers) if layers else None,
        expert_load_max=max(max(layer.load) for layer in layers) if layers else None,
        mean_shared_weight=(
            sum(layer.mean_shared_weight or 0.0 for layer in layers) / len(layers) if has_shared else None),
        shared_weight_spread=(
            sum(layer.shared_weight_spread or 0.0 for layer in layers) / len(layers) if has_shared else None),
        mean_active_experts=sum(layer.mean_active for layer in layers) / len(layers) if layers else None,
        expert_delta_cosine=_delta_cosine(model, source))


def _load(source: Path, config: SftStage) -> PreTrainedModel:
    """Load the model to train, with buffers for what its routers learn besides weights, and with the requested adapters."""
    model = load_model(source, DTYPES[config.sft.precision])
    for block in moe_blocks(model) if config.sft.balance == "bias" else []:
        block.router.add_balance_bias()
    freeze_all_but_language(model)
    add_adapters(model, config.sft, config.seed)
    return model


def _with_matched_steps(config: SftStage, source: Path, data: PackedRows) -> SftConfig:
    """Return the section sft with the number of steps at which a dense training matches the work of another training."""
    if config.match is None:
        return config.sft
    if is_moe(source):
        raise RecipeError(f"match is for dense trainings, but {config.model!r} is a Mixture-of-Experts.")
    length = sum(data.rows.lengths()) / len(data)
    steps = matched_steps(
        config.match, read_shape(source / "config.json"), len(data), config.sft.batch_size, length, len(data.rows))
    logger.info("sft: %d steps, to match the %s of the Mixture-of-Experts", steps, config.match.kind)
    return config.sft.model_copy(update={
        "max_steps": steps, "epochs": steps / math.ceil(len(data) / config.sft.batch_size) + 1})  # so that epochs set no limit


def _save_snapshots(
    model: PreTrainedModel, source: Path, config: SftStage, output: Path, checkpoint: Path, metrics_log: MetricsLog, rows: Rows,
) -> None:
    """Measure and write the models of the snapshot steps. Afterwards ``model`` again has the weights of the last step."""
    steps = snapshot_steps(config.snapshots, step_of(checkpoint))
    for number, step in enumerate(steps, start=1):
        put_weights(model, checkpoint / SNAPSHOT.format(step))
        found = held_out_loss(model, rows)
        logger.info("sft: held-out loss %.4f after %d steps", found.nll, step)
        if step < step_of(checkpoint):
            metrics_log.set(step, CurveValues(held_out_nll=found.nll).flat())
        directory = output / SNAPSHOTS / str(number)
        directory.mkdir(parents=True)
        _save(model, source, config, directory, found)


def _loss_before(model: PreTrainedModel, rows: Rows, workspace: Workspace, metrics_log: MetricsLog) -> float:
    """Return the held-out loss before training, the first point of the curves. It is measured once, despite interruptions."""
    metrics_log.begin()
    path = workspace.checkpoints / "held_out_before.jsonl"
    found = read_appended(path)
    before: float = found[0]["nll"] if found else held_out_loss(model.to(device_for_work()), rows).nll
    if not found and math.isfinite(before):  # the training reports a model that gives no numbers
        append(path, {"nll": before})
    metrics_log.set(0, CurveValues(held_out_nll=before).flat())
    logger.info("sft: held-out loss %.4f before", before)
    return before


def _delta_cosine(model: PreTrainedModel, source: Path) -> float | None:
    if not is_moe(source) or upcycle_config_of(source).mode == "fusion":
        return None
    with CheckpointReader(source) as reader:
        family = family_of(transformers_config(dense_config_of(reader)))

        def start(layer: int, name: str) -> torch.Tensor:
            stored = f"{family.block_name(layer)}.experts.{name}"
            return reader.get(stored).float().mean(0) if stored in reader else expanded(
                reader, family, family.mlp_name(layer), name)

        return delta_cosine(moe_blocks(model), start)


def _save(model: PreTrainedModel, source: Any, config: SftStage, directory: Path, after: HeldOutLoss) -> None:
    if is_moe(source):
        with CheckpointReader(source) as reader:
            dense_config = dense_config_of(reader)
        upcycle = upcycle_config_of(source)
        save_moe(model, directory, dense_config, upcycle)
        layers = [_layer_routing(layer, upcycle) for layer in after.router]
        classes = {"token_classes": _token_classes(model, source, config)} if upcycle.shared_expert else {}
        RouterFile(layers=layers, **classes).write(directory)
    else:
        model.config.use_cache = True
        model.save_pretrained(directory)
    copy_beside_weights(source, directory)
    ends = load_response_ends(config.data)
    if ends is None:
        logger.warning("sft: %r does not record which tokens end a response (it was prepared by an earlier version): the tuned "
                       "model stops where the base model does", str(config.data))
    add_end_tokens(directory, model.generation_config, ends or [])


def _token_classes(model: PreTrainedModel, source: Path, config: SftStage) -> list[TokenClassWeight]:
    try:
        tokenizer = load_tokenizer(source)
    except CheckpointError as error:
        logger.warning("sft: the shared expert's weight is not reported by token class: %s", error)
        return []
    return shared_weight_by_class(model, load_rows(config.data, "held_out"), tokenizer)


def _layer_routing(layer: LayerStatistics, upcycle: UpcycleConfig) -> LayerRouting:
    """Return a layer's entry for router.json. With the paper's routing, the file's fields are the same as in early versions."""
    found = asdict(layer)
    if upcycle.shared_gate == "probability" and upcycle.routing == "top_k":
        del found["shared_weight_spread"], found["mean_active"]
    return LayerRouting(**found)
