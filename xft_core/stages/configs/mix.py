"""The configuration of the mix stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.errors import RecipeError
from xft_core.files.locate import find_file, find_model
from xft_core.recipe.inactive_fields import learns, needs_base, tests_headroom, unused_in_merge, uses_seed
from xft_core.recipe.sections import PROCESS_FIELDS, MergeConfig, Seed
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP, PROMPTS_KEPT, without

GENERATOR_FILE = "generator.safetensors"  # in the artifact of meta-train
OF_OTHERS = ("ensemble", "ensemble_rows", "ensemble_steps", "wise")  # used by other stages


class MixStage(StageConfig):
    summary = "Choose the mixing coefficients: how much of each expert goes into the merged model, layer by layer."

    stage, version, implementation = "mix", 2, "xft_core.stages.mix"
    path_fields = frozenset({"model", "data", "base"})

    model: str = Field(description="The tuned Mixture-of-Experts.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data.")
    merge: MergeConfig = Field(MergeConfig(), description="How the experts are merged into one dense model.")
    num_processes: int = Field(1, ge=1, le=64, description="Processes per machine that learn the coefficients together.")
    num_nodes: int = Field(1, ge=1, le=64, description=(
        "Machines that learn the coefficients together: docs/how-to/several-gpus.md."))
    base: str | None = Field(None, description=(
        "The dense model that the experts come from. Needed if merge.delta_scale is not 1 or is searched, and by methods that "
        "work on differences from this model. A headroom test explores gamma only if this model is given."))

    def processes(self) -> tuple[int, int]:
        """The configured numbers if coefficients are learned, otherwise a single process."""
        merge = self.merge
        together = merge.method == "learned" and merge.generator_from is None
        return (self.num_processes, self.num_nodes) if together else (1, 1)

    def inputs(self) -> dict[str, Path]:
        """The tuned Mixture-of-Experts, the prepared data and, where they are used, the base model and a generator.

        Raises RecipeError if the base model is needed and not given.
        """
        found = {"model": find_model(self.model), "data": self.data}
        if needs_base(self.merge):
            if self.base is None:
                raise RecipeError(
                    "Mixing needs the base model: merge.delta_scale is not 1 or is searched, or merge.method "
                    f"({self.merge.method}) works on differences from it. Set base to that model.")
        if self.base is not None and (needs_base(self.merge) or tests_headroom(self.merge)):
            found["base"] = find_model(self.base)
        if learns(self.merge) and self.merge.generator_from is not None:
            found["generator"] = find_file(f"{self.merge.generator_from}/{GENERATOR_FILE}").parent
        return found

    def settings(self) -> dict[str, Any]:
        """The fields that the chosen method uses."""
        settings = super().settings()
        for name in (*PROCESS_FIELDS, *(() if uses_seed(self.merge) else ("seed",))):
            del settings[name]
        if learns(self.merge) and self.merge.cross_validation:
            settings |= PROMPTS_KEPT
        return without(settings, "merge", (*unused_in_merge(self.merge), "generator_from", *OF_OTHERS))
