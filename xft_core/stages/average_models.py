"""The average_models stage: the weighted mean of whole dense models, measured. Soups of several trainings, WiSE-FT."""

from xft_core.data.rows import load_rows
from xft_core.files.locate import find_model
from xft_core.mixing.whole_models import average_models
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs import AverageModelsStage
from xft_core.store.results.merge import MergeMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss


def run(config: AverageModelsStage, workspace: Workspace) -> MergeMetrics:
    """Write the mean and, if there is data, load it again as any user would and measure it."""
    sources = {name: find_model(model) for name, model in config.models.items()}
    parameters = average_models(sources, config.weights, workspace.output)
    held_out_nll = None
    if config.data:
        model = load_model(workspace.output, DTYPES[config.precision])
        held_out_nll = held_out_loss(model.to(device_for_work()), load_rows(config.data, "held_out")).nll
    return MergeMetrics(parameters=parameters, held_out_nll=held_out_nll)
