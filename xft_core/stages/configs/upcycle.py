"""The configuration of the upcycle stage: its fields, its inputs, and which settings change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import unused_in_upcycle
from xft_core.recipe.sections import Seed, UpcycleConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import model_needed, without
from xft_core.stages.preconditions import Preconditions


class UpcycleStage(StageConfig):
    summary = "Dense model to Mixture-of-Experts."

    stage, version, implementation = "upcycle", 1, "xft_core.stages.upcycle"
    path_fields = frozenset({"model", "experts"})

    model: str = Field("demo:model", description="Dense model: directory, Hub name or demo:model.")
    seed: Seed = Field(0, description="Seed of the router's weights.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="Dense model to Mixture-of-Experts.")

    experts: dict[str, str] = Field({}, description=(
        "Dense models of the same architecture whose FFNs the routed experts are, by number from 1, one for each; all else, "
        "and the shared expert, is the model's. Empty: all experts are the model's FFN."))

    def preconditions(self) -> Preconditions:
        """The dense model."""
        return model_needed(self.model)

    def inputs(self) -> dict[str, Path]:
        """The dense model, and those that the experts come from."""
        return {"model": find_model(self.model)} | {
            f"expert_{number}": find_model(name) for number, name in self.experts.items()}

    def settings(self) -> dict[str, Any]:
        """Without fields that are unused at these settings. Where experts come from other models, their digests say from
        which."""
        unused = [*unused_in_upcycle(self.upcycle), "dense_share", *(["store_experts"] if self.experts else [])]
        return without(super().settings(), "upcycle", unused)
