"""A training that is interrupted, as if its process had been killed."""

from typing import Any

import pytest

from xft_core.stages.configs import SftStage
from xft_core.stages.run import run_stage
from xft_core.training.trainer import XftTrainer


def interrupted_after(step: int, config: SftStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``config`` in this process, and interrupt it after ``step``."""
    log = XftTrainer.log

    def stop(self: XftTrainer, *arguments: Any) -> None:
        log(self, *arguments)
        if self.state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(XftTrainer, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stage(config)
