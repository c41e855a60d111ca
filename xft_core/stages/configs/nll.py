"""The configuration of the nll stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.data_files import data_inputs
from xft_core.files.locate import find_model, is_data_file
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import DataConfig, Precision
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import OneSource, data_needed, model_needed, without
from xft_core.stages.preconditions import Preconditions


class NllStage(StageConfig):
    summary = "Measure a model's negative log-likelihood per response token on instruction data."

    stage, version, implementation = "nll", 3, "xft_core.stages.nll"
    path_fields = frozenset({"model"})

    model: str = Field("demo:model", description="Any model: dense, upcycled, tuned or merged.")
    data: OneSource = Field(DataConfig(), description="Instruction data, and how it is turned into text for the model.")
    precision: Precision = Field("fp32", description="Weights and arithmetic; bf16_mixed counts as fp32.")

    def preconditions(self) -> Preconditions:
        """The model and the data."""
        return {**model_needed(self.model), **data_needed(self.data, self.data.path)}

    def inputs(self) -> dict[str, Path]:
        """The model, and the data file unless it is a Hub data set."""
        return {"model": find_model(self.model)} | data_inputs("data", self.data.path, self.data.split)

    def settings(self) -> dict[str, Any]:
        """The fields that turn the data into rows. A data file counts by its contents; split_seed counts only with max_rows."""
        settings = super().settings() | {"precision": measuring_precision(self.precision)}
        unused = ["held_out_rows", "held_out_path", "decontaminate", "reserved_rows", "reserved_path"]
        unused += ["path", "split"] if is_data_file(self.data.path) else []
        unused += ["split_seed"] if self.data.max_rows is None else []
        return without(settings, "data", unused)
