"""The configuration of the sft stage: its fields, its inputs, and the settings that change its result."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from xft_core.files.locate import find_model
from xft_core.recipe.inactive_fields import unused_in_sft
from xft_core.recipe.sections import PROCESS_FIELDS, ChecksConfig, Seed, SftConfig, WorkToMatch
from xft_core.stages.base import StageConfig
from xft_core.stages.configs.parts import ARTIFACT_HELP, PROMPTS_KEPT, OwnRows, without


class SftStage(StageConfig, OwnRows):
    summary = "Run supervised fine-tuning of a dense or upcycled model."

    stage, version, implementation = "sft", 5, "xft_core.stages.sft"
    added: ClassVar[frozenset[str]] = frozenset({"match", "snapshots", "part", "sources", "clusters", "cluster"})
    path_fields = frozenset({"model", "data", "clusters"})

    model: str = Field(description="Model to tune: a dense model, or the output of the upcycle stage.")
    data: Path = Field(description=f"{ARTIFACT_HELP}: prepare.")
    seed: Seed = Field(0, description="Seed of the order of the data and of the router's noise.")
    sft: SftConfig = Field(SftConfig(), description="Supervised fine-tuning.")
    checks: ChecksConfig = Field(ChecksConfig(), description="Conditions that stop the training.")
    match: WorkToMatch | None = Field(None, description=(
        "A training whose tokens or floating-point work sets the length of this one, in place of epochs. Dense models only."))
    snapshots: int = Field(0, ge=0, le=64, description=(
        "Number of models to keep besides the result, in snapshots/1 and so on: the weights after evenly spaced steps, "
        "including the last."))
    clusters: Path | None = Field(None, description=f"{ARTIFACT_HELP}: cluster_rows. Needed with cluster.")

    @model_validator(mode="after")
    def _clusters_are_known(self) -> "SftStage":
        if (self.cluster is None) != (self.clusters is None):
            raise ValueError("cluster and clusters go together: give both or neither")
        return self

    @model_validator(mode="after")
    def _snapshots_are_whole(self) -> "SftStage":
        if self.snapshots and self.sft.adapter != "none":
            raise ValueError(f"snapshots is {self.snapshots}, but sft.adapter is {self.sft.adapter}, and earlier steps are "
                             "kept as adapters only: set snapshots to 0")
        return self

    def inputs(self) -> dict[str, Path]:
        """The model, the prepared data and, if given, the cluster of each row."""
        return {"model": find_model(self.model), "data": self.data} | (
            {} if self.clusters is None else {"clusters": self.clusters})

    def settings(self) -> dict[str, Any]:
        """All fields except those that change no result: checks, checkpoint_steps, log_steps, and the number of processes."""
        settings = super().settings()
        del settings["checks"]
        for name in ("checkpoint_steps", "log_steps", *PROCESS_FIELDS, "merge_at", "merge_checkpoints"):
            settings["sft"].pop(name, None)  # the last two belong to another stage, and are absent at their defaults
        if any(getattr(self, name) is not None for name in OwnRows.model_fields):
            settings |= PROMPTS_KEPT
        of_length = ("epochs", "max_steps") if self.match else ()  # the work to match decides these
        return without(settings, "sft", (*of_length, *unused_in_sft(self.sft)))

    def processes(self) -> tuple[int, int]:
        """The numbers in the section sft."""
        return self.sft.num_processes, self.sft.num_nodes
