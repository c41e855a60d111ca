"""The ensemble stage: combine the merged model, the dense SFT model with its averages, and the base model into one dense model
(mixing/ensemble.py).

Writes the model and ensemble.json.
"""

from xft_core.data.rows import load_rows
from xft_core.errors import DataError
from xft_core.files.locate import find_model
from xft_core.mixing.ensemble import Members, choose_greedily, learn_shares
from xft_core.mixing.whole_models import average_models
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs.ensemble import EnsembleStage
from xft_core.store.results.ensemble import EnsembleFile, EnsembleMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss


def run(config: EnsembleStage, workspace: Workspace) -> EnsembleMetrics:
    """Choose the shares, write the model, load it again as any user would and measure it."""
    sources = {name: find_model(model) for name, model in config.models.items()}
    split, journal = config.split, workspace.checkpoints / "measured.jsonl"
    if split == "reserved" and not (config.data / "reserved.safetensors").is_file():
        raise DataError(
            f"The ensemble must be chosen on reserved rows, but {str(config.data)!r} has none: prepare the data with "
            "data.reserved_rows, or set merge.rows to held_in.")
    rows = load_rows(config.data, split)
    with Members(sources, DTYPES[config.precision], device_for_work()) as members:
        if config.method == "greedy":
            chosen = choose_greedily(members, rows, config.rows, journal)
        else:
            chosen = learn_shares(members, rows, config.rows, config.steps, config.learning_rate, journal)
    parameters = average_models(sources, chosen.weights, workspace.output)
    EnsembleFile(
        method=config.method, split=split, rows=min(config.rows, len(rows)), weights=chosen.weights,
        measured=chosen.measured).write(workspace.output)
    model = load_model(workspace.output, DTYPES[config.precision])
    held_out_nll = held_out_loss(model.to(device_for_work()), load_rows(config.data, "held_out")).nll  # type: ignore[arg-type]
    return EnsembleMetrics(
        parameters=parameters, held_out_nll=held_out_nll, selection_nll=chosen.nll,
        selection_nll_before=min(chosen.measured.values()), weight=chosen.weights)
