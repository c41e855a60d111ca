"""One step of a run, and placeholders for the outputs of other steps. The steps of a recipe are in steps.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

# Names of the models of every run; steps.model_places has all models of one run, including rivals.
BASE_MODEL, SFT_MODEL, MOE_MODEL, MERGED_MODEL = MODELS = ("base", "sft", "moe", "merged")
# The pairs of models that a report compares, starting with the question of the paper.
PAIRS = ((MERGED_MODEL, SFT_MODEL), (MERGED_MODEL, BASE_MODEL), (MERGED_MODEL, MOE_MODEL), (MOE_MODEL, SFT_MODEL),
         (SFT_MODEL, BASE_MODEL))
ENSEMBLE = "ensemble"  # one more model, measured like MODELS, if merge.ensemble asks for it
EXPORTED = f"{MERGED_MODEL}_"  # prefix of the names of the merged model's exports
DPO = "dpo"  # the merged model after preference tuning, measured like MODELS, if dpo.benchmark asks for it
ADAPTER = "adapter"  # in an sft artifact: the trained adapters alone
# Roles of steps that every run has, or that other code looks for; for steps that measure a model, see measuring_role.
PREPARED = "prepare"  # the rows that models are tuned and measured on
UPCYCLED, MIXED, MERGED = "upcycle", "mix", "merge"
TUNED = {SFT_MODEL: "sft_baseline", MOE_MODEL: "sft_moe"}  # by model
CLUSTERED = "cluster_rows"  # the cluster of each training row, if each branch is tuned on one cluster
CHOSEN = "choose_checkpoint"  # the Mixture-of-Experts, if it is not that of the last step
AVERAGE, SNAPSHOTS = "average", "snapshots"  # in an sft artifact: further models, in their own directories


def measuring_role(stage: str, model: str | None, index: int | None = None) -> str:
    """Role of the step in which ``stage`` measures a model of a run; None: the only model. ``index``: as in Step."""
    return "_".join(str(part) for part in (stage, model, index) if part is not None)


@dataclass(frozen=True)
class Made:
    """Placeholder in a step's fields for the directory that the step ``role`` makes, or for ``part`` of it."""

    role: str
    part: str = ""


BASE = Made("base")  # placeholder for the base model


@dataclass(frozen=True)
class Step:
    """One step of a run. ``given``: the fields of the stage's configuration, with Made and BASE for directories;
    ``model``: the model that the step makes or measures; ``index``: index in the recipe's list of benchmarks, data or tasks;
    ``judged_by``: roles of further steps, whose metrics the step's checks read (recipe/checks.py)."""

    role: str
    stage: str
    given: Mapping[str, Any]
    model: str | None = None
    index: int | None = None
    judged_by: tuple[str, ...] = ()

    @property
    def makes(self) -> dict[str, Made]:
        """The models that a step makes, unless it is a measuring step. A dense model and the average of its weights count as
        two. For a Mixture-of-Experts, only the average counts, because it is the one that is mixed and merged."""
        if self.model is None:
            return {}
        last, averaged = Made(self.role), Made(self.role, AVERAGE)
        if self.stage != "sft" or self.given["sft"].average == "none":
            return {self.model: last}
        return {self.model: averaged} if self.model == MOE_MODEL else {self.model: last, f"{self.model}_{AVERAGE}": averaged}

    @property
    def needs(self) -> list[str]:
        """Roles of the steps that must finish before this one."""
        values = [item for value in self.given.values() for item in (value.values() if isinstance(value, dict) else [value])]
        given = [item.role for item in values if isinstance(item, Made) and item != BASE]
        return list(dict.fromkeys([*given, *self.judged_by]))

    def fields(self, base: str, directory: Callable[[str], str]) -> dict[str, Any]:
        """Fields of the stage's configuration. ``base``: the base model; ``directory``: maps a role to its output directory."""
        def placed(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: placed(item) for name, item in value.items()}
            if isinstance(value, Made):
                return base if value == BASE else str(PurePath(directory(value.role), value.part))
            return value

        return {name: placed(value) for name, value in self.given.items()}
