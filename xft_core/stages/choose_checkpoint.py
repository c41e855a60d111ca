"""The choose_checkpoint stage: choose the training step at which a Mixture-of-Experts merges best on reserved rows.

Over-trained experts merge worse (arXiv 2506.14126). Each model is merged uniformly, which learns nothing and costs one
measurement. The chosen model can then be mixed by any method. Writes a copy of the chosen model, and choice.json.
"""

import logging
import shutil
from pathlib import Path

from xft_core.data.rows import Rows, load_rows
from xft_core.errors import DataError
from xft_core.files.locate import find_model
from xft_core.mixing.coefficients import uniform_weights
from xft_core.mixing.learning import MixedModel
from xft_core.mixing.mixture import MixtureReader
from xft_core.models.config import DTYPES
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import ChooseCheckpointStage
from xft_core.store.results.choose_checkpoint import ChoiceFile, ChooseCheckpointMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss

logger = logging.getLogger(__name__)


def run(config: ChooseCheckpointStage, workspace: Workspace) -> ChooseCheckpointMetrics:
    """Run the stage. Raises DataError for prepared data without reserved rows, CheckpointError for a broken model."""
    if not (config.data / "reserved.safetensors").is_file():
        raise DataError(f"{str(config.data)!r} has no reserved rows to choose on. Prepare the data with data.reserved_rows.")
    rows = load_rows(config.data, "reserved")
    models = {name: find_model(model) for name, model in config.models.items()}
    losses = {name: _merged_loss(directory, rows, config.merge) for name, directory in models.items()}
    chosen = min(losses, key=lambda name: losses[name])
    logger.info("choose_checkpoint: %s of %s, reserved loss %.4f (the last %.4f)", chosen, ", ".join(losses), losses[chosen],
                [*losses.values()][-1])
    for path in models[chosen].iterdir():
        if path.is_file() and path.name not in ("manifest.json", "metrics.jsonl"):
            shutil.copyfile(path, workspace.output / path.name)
    ChoiceFile(chosen=chosen, reserved_nll=losses).write(workspace.output)
    return ChooseCheckpointMetrics(
        chosen=[*losses].index(chosen) + 1, reserved_nll=losses[chosen], reserved_nll_last=[*losses.values()][-1])


def _merged_loss(directory: Path, rows: Rows, merge: MergeConfig) -> float:
    with MixtureReader(directory) as mixture:
        mixed = MixedModel(mixture, DTYPES[merge.precision], device_for_work())
        mixed.apply(uniform_weights(merge, mixture))
        return held_out_loss(mixed.model, rows).nll
