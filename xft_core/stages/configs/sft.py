"""The configuration of the sft stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.sections import PROCESS_FIELDS, ChecksConfig, Seed, SftConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP


class SftStage(StageConfig):
    summary = "Supervised fine-tuning of a dense model or of an upcycled one."

    stage, version, implementation = "sft", 5, "xft_core.stages.sft"

    model: str = Field(description="Model to tune: a dense one, or what the upcycle stage made.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data and of the router's noise.")
    sft: SftConfig = Field(SftConfig(), description="Supervised fine-tuning.")
    checks: ChecksConfig = Field(ChecksConfig(), description="What stops the training.")

    def inputs(self) -> dict[str, Path]:
        """The model and the prepared data."""
        return {"model": find_model(self.model), "data": self.data}

    def settings(self) -> dict[str, Any]:
        """Without the fields that change no result: checks, checkpoint_steps, log_steps, and the number of processes."""
        settings = super().settings()
        del settings["checks"]
        for name in ("checkpoint_steps", "log_steps", *PROCESS_FIELDS):
            del settings["sft"][name]
        return settings

    def processes(self) -> tuple[int, int]:
        """Those of the section sft."""
        return self.sft.num_processes, self.sft.num_nodes
