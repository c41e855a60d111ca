"""The configuration of the prepare stage: its fields, its inputs, and the settings that change its result."""

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.benchmarks.find import find_benchmark
from xft_core.files.data_files import data_inputs
from xft_core.files.digests import directory_digest
from xft_core.files.locate import find_model, is_data_file
from xft_core.recipe.sections import DataConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import OneSource, data_needed, model_needed
from xft_core.stages.preconditions import Preconditions
from xft_core.store.artifacts import input_digest


class PrepareStage(StageConfig):
    summary = "Turn instruction data into token sequences: training rows and held-out rows."

    stage, version, implementation = "prepare", 2, "xft_core.stages.prepare"
    needs_torch = False
    path_fields = frozenset({"model", "benchmarks"})

    model: str = Field("demo:model", description="Model whose tokenizer and chat template are used.")
    data: OneSource = Field(DataConfig(), description="Instruction data.")
    benchmarks: list[str] = Field([], description="Benchmarks whose problems must not be in the data.")

    def preconditions(self) -> Preconditions:
        """The model (for its tokenizer), the data and the benchmarks."""
        found = {**model_needed(self.model), **data_needed(
            self.data, self.data.path, self.data.held_out_path, self.data.reserved_path)}
        if self.data.decontaminate:
            found |= {f"benchmark {name}": partial(find_benchmark, name) for name in self.benchmarks}
        return found

    def inputs(self) -> dict[str, Path]:
        """The model directory with the tokenizer, the data files unless they are Hub data sets, the pictures and the
        benchmarks."""
        found = {"tokenizer": find_model(self.model)}
        for name, path in (
                ("data", self.data.path), ("held_out", self.data.held_out_path), ("reserved", self.data.reserved_path)):
            if path is not None:
                found |= data_inputs(name, path, self.data.split)
        if self.data.pictures is not None:
            found["pictures"] = Path(self.data.pictures)
        if self.data.decontaminate:
            found |= {f"benchmark_{index}": find_benchmark(name) for index, name in enumerate(self.benchmarks)}
        return found

    def input_digests(self) -> dict[str, str]:
        """Digest of every input, by name. The digest of the model covers only the tokenizer's files."""
        from xft_core.models.tokenizer_files import tokenizer_files

        inputs = self.inputs()
        model = inputs.pop("tokenizer")
        digests = {name: input_digest(path) for name, path in inputs.items()}
        return digests | {"tokenizer": directory_digest(model, tokenizer_files(model))}

    def settings(self) -> dict[str, Any]:
        """The fields that change the result. A data file counts by its contents, a Hub data set by its name (pin it:
        owner/name@revision)."""
        settings = super().settings()
        settings["data"].pop("pictures", None)  # they count by their contents
        for name in ("path", "held_out_path", "reserved_path"):
            path = settings["data"].get(name)
            if path is not None and is_data_file(path):
                del settings["data"][name]
        if self.data.reserved_path is not None:
            settings["data"].pop("reserved_rows", None)
        return settings
