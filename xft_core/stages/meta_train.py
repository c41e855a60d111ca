"""The meta-train stage: train a generator of coefficients on earlier runs (xft_core/mixing/generators/amortized.py).

Writes generator.safetensors, for use by merge.generator_from, and leave_one_out.json.
"""

import logging
from pathlib import Path

import torch

from xft_core.data.rows import load_rows
from xft_core.errors import RecipeError
from xft_core.files.locate import find_model
from xft_core.mixing.coefficients import load_coefficients
from xft_core.mixing.generators.amortized import Example, meta_train, save_generator
from xft_core.mixing.generators.features import Features
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.mixture import MixtureReader, mixing_weights
from xft_core.models.config import DTYPES
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs.meta_train import MetaTrainStage, MixingRun
from xft_core.store.results.meta_train import LeaveOneOutFile, LeftOutRun, MetaTrainMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import held_out_loss

logger = logging.getLogger(__name__)


def run(config: MetaTrainStage, workspace: Workspace) -> MetaTrainMetrics:
    """Train on all runs; if there are several, also without each in turn, and measure the prediction on the run left out.

    Raises ArtifactError for a run without features or with a granularity other than layer, RecipeError for a run that does not
    use all experts, because no alpha can give its shares.
    """
    shares = [load_coefficients(item.mix) for item in config.runs]
    examples = [_example(item, weight_LN) for item, weight_LN in zip(config.runs, shares, strict=True)]

    def trained(on: list[Example]) -> tuple[torch.nn.Module, float]:
        return meta_train(config.generator, on, config.seed, config.steps, config.learning_rate)

    recovered = None
    if config.measures:
        left_out = []
        for number, item in enumerate(config.runs):
            generator, _ = trained([example for other, example in enumerate(examples) if other != number])
            generator.use(examples[number].features)  # type: ignore[operator]
            left_out.append(_measured(config, item, shares[number], examples[number].features, generator()))
            logger.info("meta-train: without run %d of %d: uniform %.4f, learned %.4f, predicted %.4f", number + 1,
                        len(config.runs), left_out[-1].uniform, left_out[-1].learned, left_out[-1].predicted)
        content = LeaveOneOutFile(runs=left_out)
        content.write(workspace.output)
        recovered = content.recovered
    generator, error = meta_train(config.generator, examples, config.seed, config.steps, config.learning_rate)
    save_generator(generator, workspace.output)
    return MetaTrainMetrics(runs=len(examples), error=error, recovered=recovered)


def _example(item: MixingRun, weight_LN: torch.Tensor) -> Example:
    features = Features.load(item.mix)
    routed_LR = weight_LN[:, int(features.shared_expert):]
    if list(features.features_LNP.shape[:2]) != list(weight_LN.shape) or not bool((routed_LR > 0).all()):
        raise RecipeError(
            f"{str(item.mix)!r} gives some expert no share, or has features of another model: choose a run with merge.method "
            "learned.")
    return Example(features, routed_LR)


def _measured(
    config: MetaTrainStage, item: MixingRun, weight_LN: torch.Tensor, features: Features, alpha_LR: torch.Tensor,
) -> LeftOutRun:
    """Return the three losses on the run's held-out rows, all with the run's own lambda."""
    shared_weight_L = weight_LN[:, 0] if features.shared_expert else None
    rows = load_rows(item.data, "held_out")
    with MixtureReader(find_model(item.model)) as mixture:
        mixed = MixedModel(mixture, DTYPES[config.precision], device_for_work())

        def loss(shares_LN: torch.Tensor) -> float:
            mixed.apply(shares_LN)
            return held_out_loss(mixed.model, rows).nll

        return LeftOutRun(
            mix=Path(item.mix).name, uniform=loss(mixing_weights(torch.zeros_like(alpha_LR), shared_weight_L)),
            learned=loss(weight_LN), predicted=loss(mixing_weights(alpha_LR, shared_weight_L)))
