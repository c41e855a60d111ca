"""The row_losses stage: a model's loss on every held-out row, for paired differences, and the work of its training.

Writes row_losses.json, see store/results/row_losses.py. Reserved rows are measured too, if there are any, so that choices can
be made on rows other than the reported ones.
"""

import logging
import math
from pathlib import Path

from transformers import PreTrainedModel

from xft_core.data.packing import PackedRows
from xft_core.data.rows import load_rows
from xft_core.errors import ArtifactError
from xft_core.files.locate import find_model
from xft_core.models.config import DTYPES, dense_config_of, is_moe, upcycle_config_of
from xft_core.models.loading import load_model
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.planning.shape import shape_of_config
from xft_core.planning.work import (
    ROUTER_PASSES,
    mixing_flops,
    mixing_passes,
    router_start_flops,
    router_start_rows,
    training_flops,
)
from xft_core.recipe.sections import UpcycleConfig
from xft_core.reporting.statistics import ratio
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import RowLossesStage
from xft_core.stages.configs.parts import OwnRows
from xft_core.stages.own_rows import own_rows
from xft_core.store.manifest import read_manifest
from xft_core.store.results.mix import MixMetrics
from xft_core.store.results.mix_data import MixtureFile
from xft_core.store.results.row_losses import RowLossesFile, RowLossesMetrics, SourceRouting, SourceRoutingFile
from xft_core.store.results.sft import SftMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss, row_losses

logger = logging.getLogger(__name__)


def run(config: RowLossesStage, workspace: Workspace) -> RowLossesMetrics:
    """Run the stage. Raises DataError for data that cannot be used, CheckpointError for a broken model, ArtifactError for a
    training whose work is unknown."""
    source = find_model(config.model)
    behind = config.trained_by.values()
    models = [directory for directory in behind if read_manifest(directory).stage in ("sft", "upcycle")]
    moe = next((upcycle_config_of(directory) for directory in models if is_moe(directory)), None)
    trainings = [training_work(directory, source, config.data, config.clusters, moe) for directory in behind]
    model = load_model(source, DTYPES[config.precision]).to(device_for_work())  # type: ignore[arg-type]
    held_out = _losses(model, config.data, "held_out")
    reserved = _losses(model, config.data, "reserved") if (config.data / "reserved.safetensors").is_file() else []
    RowLossesFile(held_out=held_out, reserved=reserved).write(workspace.output)
    if (mixture := MixtureFile.read(config.data)) and is_moe(source):
        SourceRoutingFile(sources=_routing(model, config.data, mixture)).write(workspace.output)
    nll, error = ratio(*_columns(held_out))
    logger.info("row_losses: %.4f nats per response token over %d rows", nll, len(held_out))
    return RowLossesMetrics(
        nll=nll, nll_standard_error=error, rows=len(held_out),
        reserved_nll=ratio(*_columns(reserved))[0] if reserved else None,
        training_tokens=math.fsum(tokens for tokens, _ in trainings),
        training_flops=math.fsum(flops for _, flops in trainings))


def training_work(
    directory: Path, model: Path, data: Path, clusters: Path | None = None, moe: UpcycleConfig | None = None,
) -> tuple[float, float]:
    """Return the tokens (without padding) and floating-point operations of the training behind an artifact of sft or mix, or of
    the start of the routers in one of upcycle.

    ``model``: any model of the same dense architecture; ``data``: the prepared rows; ``clusters``: the rows' clusters, if the
    training is on one; ``moe``: the Mixture-of-Experts that coefficients may be learned from. See planning/work.py for what
    counts.
    Raises ArtifactError for an artifact of another stage.
    """
    manifest = read_manifest(directory)
    rows = load_rows(data, "train")
    longest = max(*rows.lengths(), *load_rows(data, "held_out").lengths())
    with CheckpointReader(model) as reader:
        shape = shape_of_config(dense_config_of(reader), str(model))
    if manifest.stage == "mix":
        steps, merge = MixMetrics.of(manifest).steps, manifest.config["merge"]
        if not steps:
            return 0.0, 0.0  # nothing was learned
        if merge.get("rows") == "reserved":
            rows = load_rows(data, "reserved")
        teacher = moe if merge.get("objective") == "distill" else None
        packed = PackedRows(rows, max(rows.lengths()), packing=shape.packs)
        # A pass ends at its last sequence and is not filled up: see mixing/learning.py.
        sequences = min(steps * merge["batch_size"], max(1, round(len(packed) * merge["epochs"])))
        passes = mixing_passes(merge.get("cross_validation", False))
        tokens = passes * sequences * sum(rows.lengths()) / len(packed)
        return tokens, tokens * mixing_flops(shape, sum(rows.lengths()) / len(packed), teacher)
    if manifest.stage == "upcycle":
        started, length = upcycle_config_of(directory), sum(rows.lengths()) / len(rows)
        tokens = router_start_rows(len(rows)) * length
        repeated = ROUTER_PASSES * tokens if started.router_start == "trained" else 0.0
        return repeated, tokens * router_start_flops(shape, started, length)
    if manifest.stage != "sft":
        raise ArtifactError(f"{str(directory)!r} is an artifact of {manifest.stage}. Give those of sft, mix and upcycle only.")
    own = OwnRows.model_validate({name: value for name, value in manifest.config.items() if name in OwnRows.model_fields})
    rows = own_rows(data, own, manifest.config["seed"], clusters)
    packed = PackedRows(rows, longest, manifest.config["sft"]["packing"] and shape.packs)
    steps_of_epoch = math.ceil(len(packed) / manifest.config["sft"]["batch_size"])
    tokens = SftMetrics.of(manifest).steps / steps_of_epoch * sum(rows.lengths())
    upcycle = upcycle_config_of(directory) if is_moe(directory) else None
    return tokens, tokens * training_flops(shape, upcycle, sum(rows.lengths()) / len(packed))


def _losses(model: PreTrainedModel, data: Path, split: str) -> list[tuple[float, int]]:
    return [(loss.nll, loss.tokens) for loss in row_losses(model, load_rows(data, split))]


def _routing(model: PreTrainedModel, data: Path, mixture: MixtureFile) -> list[SourceRouting]:
    """Return the use of the experts for each source."""
    rows, found = load_rows(data, "held_out"), []
    for place in range(len(mixture.sources)):
        at = [row for row, of_source in enumerate(mixture.held_out) if of_source == place]
        of_source = rows.select(at) if at else None
        layers = held_out_loss(model, of_source).router if of_source else []
        found.append(SourceRouting(tokens=sum(of_source.lengths()) if of_source else 0, load=[layer.load for layer in layers]))
    return found


def _columns(losses: list[tuple[float, int]]) -> tuple[list[float], list[int]]:
    return [nll for nll, _ in losses], [tokens for _, tokens in losses]
