"""The configuration of the export stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision
from xft_core.recipe.sections import ExportForm, Precision, Quantization
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP, model_needed
from xft_core.stages.preconditions import Preconditions, check_gguf


class ExportStage(StageConfig):
    summary = "Export a model for other programs: with a modelling file, in a stock architecture, or as a GGUF file."

    stage, version, implementation = "export", 3, "xft_core.stages.export"
    path_fields = frozenset({"model", "data"})

    model: str = Field(description="The model: a Mixture-of-Experts for code and stock, any model of this package for gguf.")
    form: ExportForm = Field(description=(
        "code: the unmerged Mixture-of-Experts with a modelling file, for AutoModelForCausalLM with trust_remote_code and for "
        "programs that run transformers models. stock: a Mixture-of-Experts trained with upcycle.normalization granite or "
        "qwen2_moe, with that architecture's tensor names. gguf: one file for llama.cpp, with a Modelfile for Ollama."))
    quantization: Quantization = Field("q8_0", description="Quantization of the GGUF file. Plays no part in other forms.")
    template: Literal["magicoder", "chat"] = Field("magicoder", description=(
        "The prompt template that the model was tuned with, for the Modelfile. Plays no part in other forms."))
    data: Path | None = Field(None, description=(
        f"{ARTIFACT_HELP}: prepare. For measuring the export's held-out loss and for knowing which tokens end a response."))
    precision: Precision = Field("fp32", description="Weights and arithmetic of that measurement. Use the precision of sft.")

    def preconditions(self) -> Preconditions:
        """The model, and the package that writes GGUF files."""
        return model_needed(self.model) | ({"package gguf": check_gguf} if self.form == "gguf" else {})

    def inputs(self) -> dict[str, Path]:
        """The model and, if given, the prepared data."""
        return {"model": find_model(self.model)} | ({"data": self.data} if self.data else {})

    def settings(self) -> dict[str, Any]:
        """The form, the fields that belong to it, and the precision if there is data to measure on."""
        of_form = ("quantization", "template") if self.form == "gguf" else ()
        measured = {"precision": measuring_precision(self.precision)} if self.data else {}
        return {"form": self.form} | {name: getattr(self, name) for name in of_form} | measured
