"""The configuration of the import_reference stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.stages.base import StageConfig


class ImportReferenceStage(StageConfig):
    # Not part of the pipeline: its model comes from outside.
    summary = "Convert a Mixture-of-Experts of the XFT reference code to this package's format."

    stage, version, implementation = "import-reference", 1, "xft_core.stages.import_reference"

    model: str = Field(description="Model directory that the reference code saved in safetensors, or a Hub name.")
    rope_base: float = Field(10000.0, gt=0, description=(
        "RoPE base to run the model at. The reference code runs at 10000, whatever its config says. A model trained with "
        "this bug fixed needs the dense model's own base (100000 for DeepSeek-Coder)."))

    def inputs(self) -> dict[str, Path]:
        """The reference's model."""
        return {"model": find_model(self.model)}
