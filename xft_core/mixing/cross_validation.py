"""The strength of the pull to uniform mixing: rho chosen on three folds of the rows (section 8 of the design, Stone 1974).

For every rho and fold, coefficients are learned on the other two folds from uniform mixing, and the objective (without the
penalty) is measured on the fold. The rho with the lowest mean is taken, the largest of equal ones. Every fold has its own
directory of checkpoints, which also keeps its measurement: a start after a kill continues from there.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch

from xft_core.data.rows import Rows
from xft_core.files.disk import write_whole
from xft_core.mixing.learning import apply_learned, learn, objective_now
from xft_core.mixing.mixed_model import MixedModel
from xft_core.mixing.objective import Objective
from xft_core.recipe.sections import MergeConfig
from xft_core.runtime.group import is_first, summed
from xft_core.store.curves import MetricsLog
from xft_core.store.results.mix import CrossValidationFile, PenaltyLoss

logger = logging.getLogger(__name__)

PENALTIES = (0.0, 1e-3, 1e-2, 1e-1)  # rho
FOLDS = 3


def choose_penalty(
    mixed: MixedModel, rows: Rows, merge: MergeConfig, seed: int, checkpoints: Path, shared_weight_start: float,
    objective: Objective, new_generator: Callable[[], torch.nn.Module | None],
) -> CrossValidationFile | None:
    """Try every rho; None for fewer rows than folds. ``new_generator``: creates the untrained generator of alpha. If there are
    several processes, all must call this function."""
    if len(rows) < FOLDS:
        return None
    found = []
    for penalty in PENALTIES:
        with_penalty = merge.model_copy(update={"uniform_penalty": penalty})
        losses = []
        for fold in range(FOLDS):
            directory = checkpoints / f"fold-{fold}-{penalty:g}"
            directory.mkdir(exist_ok=True)
            loss = _noted(directory)
            if loss is None:
                others = _taken(rows, [index for index in range(len(rows)) if index % FOLDS != fold])
                learned = learn(mixed, others, with_penalty, seed, directory, MetricsLog(directory / "metrics.jsonl"),
                                shared_weight_start, objective, new_generator())
                apply_learned(mixed, learned)
                left_out = _taken(rows, list(range(fold, len(rows), FOLDS)))
                loss = objective_now(mixed, left_out, merge.micro_batch_size, objective)
                if is_first():
                    write_whole(directory / "loss", repr(loss))
            losses.append(loss)
        logger.info("mix: rho %g has a mean loss of %.4f over %d folds", penalty, fmean(losses), FOLDS)
        found.append(PenaltyLoss(uniform_penalty=penalty, losses=losses))
    best = min(found, key=lambda item: (fmean(item.losses), -item.uniform_penalty))
    return CrossValidationFile(chosen=best.uniform_penalty, penalties=found)


def _noted(directory: Path) -> float | None:
    """A fold's earlier measurement. Only the first process reads it, so that all get the same."""
    path = directory / "loss"
    is_there = is_first() and path.is_file()
    known = torch.tensor([float(is_there), float(path.read_text()) if is_there else 0.0], dtype=torch.float64)
    there, loss = summed(known).tolist()
    return loss if there else None


def _taken(rows: Rows, indices: list[int]) -> Rows:
    return rows.select(indices)
