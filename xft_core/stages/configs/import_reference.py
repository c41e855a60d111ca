"""The configuration of the import_reference stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.stages.base import StageConfig


class ImportReferenceStage(StageConfig):
    # Not part of the pipeline: its model comes from outside.
    summary = "A Mixture-of-Experts of the XFT reference code to one of ours."

    stage, version, implementation = "import-reference", 1, "xft_core.stages.import_reference"

    model: str = Field(description="Model directory that the reference code saved, in safetensors, or a Hub name.")
    rope_base: float = Field(10000.0, gt=0, description=(
        "RoPE base to run the model at. The reference runs at 10000, whatever its config says; a model that was trained "
        "with that repaired needs the dense model's own (100000 for DeepSeek-Coder)."))

    def inputs(self) -> dict[str, Path]:
        """The reference's model."""
        return {"model": find_model(self.model)}
