"""Record how long stages take on this machine, for the plans of later runs. Uses neither Prefect nor MLflow."""

import os
from pathlib import Path

from tasks.prefect_log import Logger
from tasks.references import base_model
from tasks.settings import settings
from xft_core.errors import XftError
from xft_core.planning import history
from xft_core.planning.history import Timing, likeness
from xft_core.planning.machine import machine_name, slowdown
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import Shape, find_config, read_shape
from xft_core.planning.stage_plan import DataSize
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import planned_role, planned_roles
from xft_core.stages.base import StageConfig
from xft_core.stages.configs import SftStage
from xft_core.store.manifest import Manifest, read_manifest
from xft_core.store.results.generate import GenerateMetrics
from xft_core.store.results.prepare import PrepareMetrics
from xft_core.store.results.sft import SftMetrics


def threads_of_a_stage() -> int:
    """Return the number of processor cores that a heavy stage gets here."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else settings().threads_per_slot


def note(recipe: Recipe, role: str, config: StageConfig, manifest: Manifest, logger: Logger) -> None:
    """Record the time of a stage that ran here from start to end. Logs a warning if that fails."""
    planned = planned_role(recipe, role)
    if planned is None:
        return
    try:
        path = find_config(base_model(recipe))
        if path is None:
            return
        shape = read_shape(path)
        work = _work(recipe, shape, planned, config, manifest)
        if work:
            history.remember(_path(), Timing(
                likeness=likeness(planned, recipe, shape, machine_name(), threads_of_a_stage()), work=work,
                seconds=max(manifest.seconds, 0.001), slowdown=slowdown(over_seconds=manifest.seconds), ended=history.now()))
    except (XftError, OSError, ValueError) as error:
        logger.warning("The stage's duration could not be recorded for later plans: %s", error)


def remembered(recipe: Recipe, shape: Shape) -> dict[str, list[Timing]]:
    """Return the recorded times of stages like the recipe's, by role."""
    found, machine, threads = history.timings(_path()), machine_name(), threads_of_a_stage()
    return {role: found.get(likeness(role, recipe, shape, machine, threads), []) for role in planned_roles(recipe)}


def _path() -> Path:
    return settings().home / history.NAME


def _work(recipe: Recipe, shape: Shape, role: str, config: StageConfig, manifest: Manifest) -> float | None:
    """Return the plan's measure of the work, for the work that the stage really did."""
    data = None
    prepared = getattr(config, "data", None)
    if isinstance(prepared, Path):
        rows = PrepareMetrics.of(read_manifest(prepared))
        if rows.train_rows is None or rows.held_out_rows is None or rows.train_tokens is None:
            return None
        train_rows = rows.train_rows
        sequences = None
        if isinstance(config, SftStage):
            if config.match or config.part:
                return None  # its steps do not say how many sequences an epoch has
            sft = planned_roles(recipe)[role].given["sft"]
            sequences = SftMetrics.of(manifest).steps * sft.batch_size / sft.epochs / train_rows
        data = DataSize(
            train_rows, rows.held_out_rows, rows.train_tokens / train_rows, sequences_per_row=sequences)
    problems = GenerateMetrics.of(manifest).problems if role.startswith("generate") else None
    plan = {stage.role: stage for stage in make_plan(recipe, shape, data, problems)}
    return plan[role].work if role in plan else None
