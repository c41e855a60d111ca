"""The configuration of the mix stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.errors import RecipeError
from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import needs_base, unused_in_merge, uses_seed
from xft_core.recipe.sections import PROCESS_FIELDS, MergeConfig, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP, without

OF_ENSEMBLE = ("ensemble", "ensemble_rows", "ensemble_steps")  # another stage's


class MixStage(StageConfig):
    summary = "Mixing coefficients: how much of each expert goes into the merged model, layer by layer."

    stage, version, implementation = "mix", 2, "xft_core.stages.mix"
    path_fields = frozenset({"model", "data", "base"})

    model: str = Field(description="The tuned Mixture-of-Experts.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data.")
    merge: MergeConfig = Field(MergeConfig(), description="Experts to one dense model.")
    num_processes: int = Field(1, ge=1, le=64, description="Processes on each machine that learn them together.")
    num_nodes: int = Field(1, ge=1, le=64, description="Machines that learn them together: docs/how-to/several-gpus.md.")
    base: str | None = Field(None, description=(
        "The dense model that the experts come from; needed by methods that work on differences from it."))

    def processes(self) -> tuple[int, int]:
        """Those of the fields for the method learned; one process for the others."""
        return (self.num_processes, self.num_nodes) if self.merge.method == "learned" else (1, 1)

    def inputs(self) -> dict[str, Path]:
        """The tuned Mixture-of-Experts and the prepared data; the base model where it plays a part.

        Raises RecipeError where it is needed and not given.
        """
        found = {"model": find_model(self.model), "data": self.data}
        if needs_base(self.merge):
            if self.base is None:
                raise RecipeError(f"merge.method {self.merge.method} needs the base model: give it as base.")
            found["base"] = find_model(self.base)
        return found

    def settings(self) -> dict[str, Any]:
        """The fields that the chosen method uses."""
        settings = super().settings()
        for name in (*PROCESS_FIELDS, *(() if uses_seed(self.merge) else ("seed",))):
            del settings[name]
        return without(settings, "merge", (*unused_in_merge(self.merge), *OF_ENSEMBLE))
