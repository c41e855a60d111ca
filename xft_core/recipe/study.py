"""A study: arms that are compared at several seeds, each with its own best settings, and the claims that are tested.

An arm is a model of a pipeline run: the run uses the recipe that all arms share, changed by the arm's overrides. Every arm
chooses among the same number of settings (``tuning``) by its loss on the reserved rows. The reported results are measured on
the held-out rows, at all seeds. The file is written and committed before the runs.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from xft_core.errors import RecipeError
from xft_core.recipe.grid import SEED, Variant
from xft_core.recipe.load import apply_overrides, flatten, parse, read_yaml
from xft_core.recipe.sections import Recipe, RecipeName, Section, Seed
from xft_core.recipe.step import MERGED_MODEL

MOST_RUNS = 2_000
MODEL = "model"  # in tuning: not a recipe field, but the choice of the run's model that is the arm


class Arm(Section):
    """One method of a study."""

    about: str = Field("", description="Short description of the arm, for tables.")
    model: str = Field(MERGED_MODEL, description=(
        "The model of the run that the arm is: base, sft, moe, merged, or a rival such as sft_soup."))
    overrides: list[str] = Field([], description="Fields that differ from the shared recipe: section.field=value.")
    tuning: dict[str, list[Any]] = Field({}, description=(
        "Fields with the values to choose from, instead of the study's: section.field: [value, value]. The name model refers "
        "to the arm's model: model: [sft, sft_wise_0_7]."))


class Rung(Section):
    """One claim of the ladder: the loss of ``lower`` is below that of ``than``."""

    claim: str = Field(description="The claim as a sentence.")
    lower: str = Field(description="Name of the arm that is claimed to have the lower loss.")
    than: str = Field(description="Name of the arm that it is compared with.")


class StudyConfig(Section):
    """The complete description of a study."""

    name: RecipeName = Field(description="Name of the study, also used for its MLflow experiment and report.")
    question: str = Field(description="The question that the study asks.")
    recipe: str = Field(description="Recipe file (YAML) that all arms share, relative to the study's file.")
    seeds: list[Seed] = Field([0, 1, 2, 3, 4], min_length=1, description="Seeds of the reported runs.")
    tuning: dict[str, list[Any]] = Field({}, description=(
        "Fields with the values that each arm chooses from on the reserved rows, in all combinations: section.field: [value, "
        "value]."))
    tuning_seeds: list[Seed] = Field([0], min_length=1, description="Seeds of the runs that choose settings.")
    arms: dict[str, Arm] = Field(min_length=1, description="The arms by name.")
    ladder: list[Rung] = Field([], description="Claims in the order of the ladder; p-values are corrected for their number.")
    smallest_effect: float = Field(0.005, gt=0, description="Smallest difference that counts, in nats per response token.")
    seed_deviation: float = Field(0.003, ge=0, description=(
        "Expected standard deviation of a paired difference over seeds, for the power analysis before the runs (nats per "
        "token)."))
    row_deviation: float = Field(0.07, ge=0, description=(
        "Expected standard deviation of a row's paired difference per token, for the power analysis before the runs."))

    @model_validator(mode="after")
    def _names_fit(self) -> "StudyConfig":
        for rung in self.ladder:
            for arm in (rung.lower, rung.than):
                if arm not in self.arms:
                    raise ValueError(f"the ladder names the arm {arm!r}, which is not one of {', '.join(self.arms)}")
            if rung.lower == rung.than:
                raise ValueError(f"the ladder compares the arm {rung.lower!r} with itself: {rung.claim!r}")
        for name, values in [(name, values) for tuning in self._tunings() for name, values in tuning.items()]:
            if not values:
                raise ValueError(f"tuning: {name} has no values")
            if name == SEED:
                raise ValueError("tuning: the seed is not tuned; give seeds and tuning_seeds")
        for name, own in self.arms.items():
            if own.model != MERGED_MODEL and MODEL in (own.tuning or self.tuning):
                raise ValueError(
                    f"arms.{name}: model is {own.model}, but tuning chooses the arm's model as well. Remove model, or give the "
                    f"arm a tuning of its own: {{model: [{own.model}]}}")
            set_elsewhere = {SEED, *(own.tuning or self.tuning)}
            for field in (item.partition("=")[0].strip() for item in own.overrides):
                if field in set_elsewhere:
                    by = "seeds and tuning_seeds set it" if field == SEED else "tuning chooses its value"
                    raise ValueError(f"arms.{name}: overrides set {field}, but {by}. Remove the override" + (
                        "" if field == SEED else f", or give the arm a tuning of its own without {field}"))
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.tuning_seeds)) < len(self.tuning_seeds):
            raise ValueError("a seed is given twice")
        return self

    def _tunings(self) -> list[dict[str, list[Any]]]:
        return [self.tuning, *(arm.tuning for arm in self.arms.values())]

    def choices(self, arm: str) -> list[dict[str, Any]]:
        """The settings that an arm chooses from, in file order; a single empty setting if nothing is tuned."""
        tuning = self.arms[arm].tuning or self.tuning
        return [dict(zip(tuning, values, strict=True)) for values in itertools.product(*tuning.values())]

    def model_of(self, arm: str, choice: int) -> str:
        """The model of its run that an arm is, for the choice with this number."""
        return str(self.choices(arm)[choice].get(MODEL, self.arms[arm].model))


@dataclass(frozen=True)
class ArmRun:
    """One training of an arm. ``choice``: the index of its settings in ``StudyConfig.choices``; ``variant``: the name of its
    pipeline run, which arms with the same recipe share."""

    arm: str
    choice: int
    seed: int
    variant: str


def load_study(path: Path) -> tuple[StudyConfig, Recipe]:
    """Load the study in a YAML file and the recipe that its arms share, with the study's name as its experiment. Raises
    RecipeError."""
    study = parse(StudyConfig, read_yaml(path), where=str(path))
    values = read_yaml(path.parent / study.recipe) | {"experiment": study.name}
    return study, parse(Recipe, values, where=study.recipe)


def tuning_runs(study: StudyConfig, recipe: Recipe) -> tuple[list[Variant], list[ArmRun]]:
    """The runs that choose each arm's settings. An arm with only one setting needs none. Raises RecipeError."""
    wanted = [(arm, choice, seed) for arm in study.arms if len(study.choices(arm)) > 1
              for choice in range(len(study.choices(arm))) for seed in study.tuning_seeds]
    return _runs(study, recipe, wanted)


def reported_runs(
    study: StudyConfig, recipe: Recipe, chosen: Mapping[str, int] | None = None,
) -> tuple[list[Variant], list[ArmRun]]:
    """The reported runs: every arm in ``chosen`` with this choice at every seed; before anything is chosen, every arm with its
    first. Raises RecipeError."""
    if chosen is None:
        chosen = dict.fromkeys(study.arms, 0)
    wanted = [(arm, chosen[arm], seed) for arm in study.arms if arm in chosen for seed in study.seeds]
    return _runs(study, recipe, wanted)


def every_choice(study: StudyConfig, recipe: Recipe) -> tuple[list[Variant], list[ArmRun]]:
    """A run of every arm with each of its settings, all at the first tuning seed, to check them. Raises RecipeError."""
    wanted = [(arm, choice, study.tuning_seeds[0]) for arm in study.arms for choice in range(len(study.choices(arm)))]
    return _runs(study, recipe, wanted)


def _runs(study: StudyConfig, recipe: Recipe, wanted: list[tuple[str, int, int]]) -> tuple[list[Variant], list[ArmRun]]:
    if len(wanted) > MOST_RUNS:
        raise RecipeError(f"The study has {len(wanted)} runs, more than {MOST_RUNS}. Split it into several.")
    variants: dict[str, Variant] = {}
    runs = []
    for arm, choice, seed in wanted:
        settings = study.choices(arm)[choice]
        group = " ".join([arm, *(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())])
        name = f"{group} seed={seed}"
        fields = {name: value for name, value in settings.items() if name != MODEL}
        changed = _changed(recipe, study.arms[arm].overrides, fields | {SEED: seed}, where=f"Arm {arm!r}")
        variant = variants.setdefault(
            changed.model_dump_json(), Variant(name, group, {"arm": arm, **settings, SEED: seed}, changed))
        runs.append(ArmRun(arm, choice, seed, variant.name))
    return list(variants.values()), runs


def _changed(recipe: Recipe, overrides: list[str], settings: dict[str, Any], where: str) -> Recipe:
    known = flatten(Recipe())
    for name in settings:
        if name not in known:
            raise RecipeError(f"{where}: tuning names {name!r}, which is not a field of a recipe.")
    values = apply_overrides(recipe.model_dump(), overrides)
    for name, value in settings.items():
        *sections, field = name.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[field] = value
    return parse(Recipe, values, where=where)
