"""The configuration of the upcycle stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import measuring_precision, unused_in_upcycle
from xft_core.recipe.sections import Precision, Seed, UpcycleConfig
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP, OwnRows, model_needed, without
from xft_core.stages.preconditions import Preconditions


class UpcycleStage(StageConfig):
    summary = "Turn a dense model into a Mixture-of-Experts."

    stage, version, implementation = "upcycle", 1, "xft_core.stages.upcycle"
    path_fields = frozenset({"model", "experts", "data", "clusters"})
    added = frozenset({"rows_of_experts", "precision"})

    model: str = Field("demo:model", description="Dense model: directory, Hub name or demo:model.")
    seed: Seed = Field(0, description="Seed of the router's weights and of the experts' trainings.")
    upcycle: UpcycleConfig = Field(UpcycleConfig(), description="How the dense model becomes a Mixture-of-Experts.")

    experts: dict[str, str] = Field({}, description=(
        "Dense models of the same architecture that supply the routed experts' FFNs, one for each expert, by number from 1. "
        "Everything else, including the shared expert, comes from the model. Empty: all experts are the model's FFN."))
    data: Path | None = Field(None, description=f"{ARTIFACT_HELP}: prepare. Needed with router_start ridge and trained.")
    rows_of_experts: dict[str, OwnRows] = Field({}, description=(
        "Rows that each expert was tuned on, by number from 1, for router_start ridge and trained. Empty: a row belongs to the "
        "expert with the lowest loss on it."))
    clusters: Path | None = Field(None, description=f"{ARTIFACT_HELP}: cluster_rows. Needed if those rows are clusters.")
    precision: Precision = Field("fp32", description=(
        "Weights and arithmetic of router_start ridge and trained; bf16_mixed counts as fp32."))

    @model_validator(mode="after")
    def _router_can_start(self) -> "UpcycleStage":
        start = self.upcycle.router_start
        if start != "random" and (self.data is None or not self.experts):
            raise ValueError(f"upcycle.router_start is {start}, which needs data (prepared rows) and experts: give both")
        if self.rows_of_experts and self.rows_of_experts.keys() != self.experts.keys():
            raise ValueError("rows_of_experts and experts are numbered differently: give the rows of each expert")
        return self

    def preconditions(self) -> Preconditions:
        """The dense model."""
        return model_needed(self.model)

    def inputs(self) -> dict[str, Path]:
        """The dense model, the models that the experts come from, and the rows that the router starts from."""
        rows = {"data": self.data, "clusters": self.clusters} if self.upcycle.router_start != "random" else {}
        return {"model": find_model(self.model)} | {
            f"expert_{number}": find_model(name) for number, name in self.experts.items()} | {
            name: path for name, path in rows.items() if path is not None}

    def settings(self) -> dict[str, Any]:
        """All fields except those that are unused at these settings. If experts come from other models, the digests identify
        them."""
        unused = [*unused_in_upcycle(self.upcycle), "dense_share", *(["store_experts"] if self.experts else [])]
        settings = without(super().settings(), "upcycle", unused)
        settings.pop("precision", None)
        if self.upcycle.router_start == "random":
            settings.pop("rows_of_experts", None)
            return settings
        return settings | {"precision": measuring_precision(self.precision)}
