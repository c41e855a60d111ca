"""The configuration of the merge_mixture stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path

from pydantic import Field

from xft_core.files.locate import find_file, find_model
from xft_core.stages.base import StageConfig


class MergeMixtureStage(StageConfig):
    # Not part of the pipeline: its model comes from outside.
    summary = "Merge a stock Mixture-of-Experts (Mixtral, Qwen-MoE, granite and others) into its dense sibling."

    stage, version, implementation = "merge-mixture", 2, "xft_core.stages.merge_mixture"
    path_fields = frozenset({"model", "plan"})

    model: str = Field(description="Mixture-of-Experts: a directory in safetensors, or a Hub name.")
    shared_expert_weight: float = Field(0.75, ge=0, le=1, description=(
        "lambda, the share of the shared expert; the others have equal shares. Plays no part without a shared expert."))
    plan: Path | None = Field(None, description=(
        "File (JSON or YAML) with a plan that replaces the one derived from names and shapes: see --print-plan."))

    def inputs(self) -> dict[str, Path]:
        """The model and, if given, the plan."""
        return {"model": find_model(self.model)} | ({"plan": find_file(str(self.plan))} if self.plan else {})
