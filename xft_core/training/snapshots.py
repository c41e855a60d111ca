"""Weights after some steps of a training, kept with its result: starting points of experts, or weights to mix at another step.

They are in the directory of the checkpoints. Each checkpoint also has those up to its step, so that a training that continues
elsewhere has them. If the file system supports links, both are the same file on disk.
"""

import os
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from xft_core.runtime.group import is_first
from xft_core.training.sharding import whole_weights

NAME = "snapshot-{}.safetensors"


def snapshot_steps(count: int, total_steps: int) -> list[int]:
    """The steps after which weights are kept, evenly spaced, the last step among them. If a training has fewer steps than
    ``count``, some steps are repeated."""
    return [max(1, round(total_steps * number / count)) for number in range(1, count + 1)]


class Snapshots:
    """Takes the weights after ``steps``."""

    def __init__(self, directory: Path, steps: list[int]) -> None:
        self._directory, self._steps = directory, set(steps)

    def take(self, model: nn.Module, step: int) -> None:
        """Keep the weights after ``step`` if it is one of the steps. Every process must call it."""
        if step not in self._steps:
            return
        weights = whole_weights(model)
        if is_first():
            path = self._directory / NAME.format(step)
            save_file(weights, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)

    def copy_to(self, checkpoint: Path, step: int) -> None:
        """Put the snapshots up to ``step`` into a checkpoint."""
        for taken in sorted(item for item in self._steps if item <= step):
            _link(self._directory / NAME.format(taken), checkpoint / NAME.format(taken))


def restore_snapshots(checkpoint: Path, directory: Path) -> None:
    """Restore the snapshots that were put into a checkpoint."""
    if is_first():
        for path in checkpoint.glob(NAME.format("*")):
            _link(path, directory / path.name)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
