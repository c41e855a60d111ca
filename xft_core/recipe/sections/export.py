"""The recipe section export."""

from typing import Literal

from pydantic import Field

from xft_core.recipe.sections.base import Section

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
ExportForm = Literal["code", "stock", "gguf"]


class ExportConfig(Section):
    """Exports of a run's models to other formats, each measured like the original."""

    gguf: list[Quantization] = Field([], max_length=8, description=(
        "GGUF files of the merged model to write, each with a Modelfile for Ollama: q8_0, q5_1, q5_0, q4_1, q4_0, or f32, "
        "f16, bf16. Each file is loaded again and measured as a separate model. K-quants (Q4_K_M) are not available, because "
        "the package gguf cannot write them."))
