"""Resume an interrupted stage after its newest complete checkpoint, with the curves up to it."""

import logging
from pathlib import Path

import torch

from xft_core.runtime.group import is_first, summed
from xft_core.store.checkpoints import newest_whole, step_of
from xft_core.store.curves import MetricsLog

logger = logging.getLogger(__name__)


def step_to_go_on_from(checkpoints: Path, metrics: MetricsLog, stage: str) -> int:
    """The step of the newest complete checkpoint, 0 without one. Also resets the curves to it.

    If there are several processes, all must call it. The first one looks, so that all continue from the same checkpoint.
    """
    step = 0
    if is_first():
        checkpoint = newest_whole(checkpoints)
        if checkpoint is not None:
            step = step_of(checkpoint)
            metrics.restore_from(checkpoint)
            logger.info("%s: continuing from step %d", stage, step)
        metrics.forget_after(step)
    return int(summed(torch.tensor(step)))
