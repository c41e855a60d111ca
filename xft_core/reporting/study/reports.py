"""The losses that a study reads from its runs' reports: on reserved rows for choices, and on held-out rows to report."""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import numpy as np

from xft_core.errors import ArtifactError, RecipeError
from xft_core.recipe.sections import Recipe
from xft_core.recipe.study import ArmRun, StudyConfig, tuning_runs
from xft_core.reporting.study.ladder import Choice, Measured
from xft_core.store.results.report import RunRowsFile


def tuned(study: StudyConfig, recipe: Recipe, reports: Mapping[str, Path]) -> dict[str, list[Choice]]:
    """The settings that each arm chooses from, with the losses on the reserved rows. An arm with one setting chooses nothing.

    A setting that failed at one of the tuning seeds, or diverged there, has no loss, because a mean over fewer seeds is not
    comparable."""
    _, runs = tuning_runs(study, recipe)
    found = {}
    for arm in study.arms:
        choices = []
        for number, settings in enumerate(study.choices(arm)):
            of_choice = [item for item in runs if (item.arm, item.choice) == (arm, number)]
            losses = [_reserved_loss(study, item, reports) for item in of_choice if item.variant in reports]
            numbers = [loss for loss in losses if loss is not None and math.isfinite(loss)]
            is_whole = bool(of_choice) and len(numbers) == len(of_choice)
            choices.append(Choice(settings=settings, reserved_loss=fmean(numbers) if is_whole else None))
        found[arm] = choices
    return found


def reported(
    study: StudyConfig, runs: list[ArmRun], reports: Mapping[str, Path],
) -> tuple[dict[str, dict[int, Measured]], np.ndarray, dict[str, str]]:
    """Every arm's losses by seed, the rows' response tokens, and by run the reason why it has no losses although it has a
    report: its training diverged. Raises ArtifactError for runs on different rows, and if no run has losses."""
    measured: dict[str, dict[int, Measured]] = {}
    lacking: dict[str, str] = {}
    tokens: list[int] | None = None
    for item in runs:
        if item.variant not in reports:
            continue
        rows, model = RunRowsFile.read(reports[item.variant]), study.model_of(item.arm, item.choice)
        if rows is None or model not in rows.losses:  # check_study has seen to it that the run makes and measures the model
            lacking[item.variant] = (f"Arm {item.arm!r}: the losses of the model {model!r} are not numbers, so its training "
                                     "diverged. Lower the learning rate.")
            continue
        if tokens is not None and rows.tokens != tokens:
            raise ArtifactError(
                f"The run {item.variant!r} was measured on different rows than the runs before it: its rows have "
                f"{sum(rows.tokens):,} response tokens, theirs {sum(tokens):,}. Arms can be compared only on the same rows.")
        tokens = rows.tokens
        measured.setdefault(item.arm, {})[item.seed] = Measured(np.array(rows.losses[model]), rows.training_flops.get(model))
    if tokens is None:
        raise ArtifactError(
            next(iter(lacking.values()), "No run of the study has a report: all of them failed. The reasons are in the flow "
                 "run's log."))
    return measured, np.array(tokens), lacking


def _reserved_loss(study: StudyConfig, item: ArmRun, reports: Mapping[str, Path]) -> float | None:
    """None if the model's losses are not numbers, as after a training that diverged."""
    rows, model = RunRowsFile.read(reports[item.variant]), study.model_of(item.arm, item.choice)
    if rows is None or model not in rows.losses:
        return None
    if model not in rows.reserved_nll:
        raise RecipeError(
            "The arms are tuned, but no rows are reserved for tuning. Set data.reserved_rows in the study's recipe: a "
            "setting that is chosen on the reported rows cannot be reported on them.")
    return rows.reserved_nll[model]
