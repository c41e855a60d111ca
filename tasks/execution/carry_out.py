"""Carry out a stage task: compute the key, reuse the artifact in the store or run the stage, and record it in MLflow.

Stages work in the local store. Missing artifacts are looked up in the object store, and new ones are sent there.

The store, not Prefect's database, decides what is done. Anyone with the store can reuse it, and missing or altered files are
noticed here, regardless of any database.
"""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled, Completed

from tasks import prefect_log
from tasks.execution import check_events, durations
from tasks.execution.child_process import run_in_child
from tasks.execution.compute_slots import Turn, compute_slot
from tasks.execution.delivery import insist
from tasks.object_store import artifacts, checkpoints, data, run_records
from tasks.object_store.bucket import StoreUnavailable
from tasks.prefect_log import Logger
from tasks.prefect_page import Progress, show_link
from tasks.references import ArtifactRef, PipelineRun
from tasks.settings import KEY_LENGTH, settings
from tasks.stopping import RunStopped, stop_event
from tasks.tracking.client import TrackingUnavailable
from tasks.tracking.follower import Follower
from tasks.tracking.stage_run import StageRun
from tasks.tracking.system_metrics import sampled
from xft_core.errors import XftError
from xft_core.files.disk import disk_full_is_an_error
from xft_core.recipe import checks
from xft_core.recipe.steps import FACTS, Step, steps_behind
from xft_core.stages.base import StageConfig
from xft_core.stages.configs import STAGES
from xft_core.stages.run import stage_key
from xft_core.store.artifacts import find
from xft_core.store.manifest import Manifest
from xft_core.store.results.base import HasMetrics
from xft_core.store.workspace import Workspace

prefect_log.install()


def carry_out(run: PipelineRun, step: Step, needed: Mapping[str, ArtifactRef], base: str) -> ArtifactRef | State[Any]:
    """Return the artifact of ``step``: from the store (the task ends as Cached), or by running the stage.

    ``needed``: the artifacts of the steps before it, by role; ``base``: the base model. Raises XftError, also if the
    artifact's metrics must stop the run, reused or not. Ends as Cancelled if the run was stopped.
    """
    logger, role = get_run_logger(), step.role
    child = StageRun(run, step.stage, role, logger, again=max(_count(task_run), _count(flow_run)) > 1)
    show_link(role, run.experiment_id, child.id, logger)
    try:
        with disk_full_is_an_error(settings().home):
            stop = stop_event(run.flow_run_id)
            fields = step.fields(base, lambda role: str(needed[role].path))
            fields = insist(lambda: data.fetched(fields, stop, logger), stop, logger)
            config, key = _placed(STAGES[step.stage], run, child, **fields)
            run_records.note(run, f"{step.stage}/{config.output.name}")
            manifest = find(config.output, key) or insist(lambda: artifacts.fetch(config.output, key, stop), stop, logger)
            made_here = manifest is None
            if manifest is None:
                manifest, whole = _make(run, config, key, role, child, stop, logger)
                if whole:
                    durations.note(run.recipe, role, config, manifest, logger)
            _deliver(config, stop, logger)
            # A retry that finds the artifact of its own first attempt has reused nothing. One whose child waited for another
            # run on the same artifact has.
            reused = manifest.provenance.get("prefect_flow_run_id") != run.flow_run_id
            recorded = _record(child, config, manifest, reused, logger)
        made: dict[str, HasMetrics] = {**needed, role: manifest}
        check_events.tell(run, step, made, reused or not made_here, logger)
        checks.raise_for(checks.stage_findings(step, run.recipe, made, only_stop=True))
    except RunStopped as stopped:
        child.end("KILLED")
        return Cancelled(message=str(stopped))
    except BaseException as error:
        child.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    reference = ArtifactRef(
        stage=step.stage, role=role, key=key, digest=manifest.digest, path=config.output, metrics=manifest.metrics,
        reused=reused, mlflow_run_id=child.id, recorded=recorded)
    if made_here and not reused:
        return reference
    return Completed(name="Cached", message=f"In the store since {manifest.created}.", data=reference)


def _placed(
    stage: type[StageConfig], run: PipelineRun, child: StageRun, **fields: Any,
) -> tuple[StageConfig, str]:
    """Return the stage's configuration with its place in the store, and the key that determines the place."""
    draft = stage(output=settings().artifacts, **fields)
    key = stage_key(draft)
    provenance = {"recipe": run.recipe.name, "prefect_flow_run_id": run.flow_run_id}
    provenance |= {"mlflow_run_id": child.id} if child.id else {}
    output = settings().artifacts / stage.stage / key[:KEY_LENGTH]
    return draft.model_copy(update={"output": output, "provenance": provenance}), key


def _make(
    run: PipelineRun, config: StageConfig, key: str, role: str, child: StageRun, stop: threading.Event, logger: Logger,
) -> tuple[Manifest, bool]:
    """Make the artifact. Also returns whether this process made all of it, rather than resuming earlier work."""
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if FACTS[config.stage].heavy:
            slots = settings().compute_slots
            turn = Turn(flow_run.scheduled_start_time.timestamp(), steps_behind(run.recipe).get(role, 0))
            stack.enter_context(compute_slot(
                settings().locks, slots, stop, f"{role.replace('_', '-')} of {flow_run.name}",
                lambda holders: logger.info("Waiting for a compute slot (%d in total), held by: %s.", slots, holders), turn))
            if found := find(config.output, key):  # another run made it while this one waited
                return found, False
        insist(lambda: checkpoints.restore(config.output, key, stop, logger), stop, logger)
        stack.enter_context(checkpoints.Keeper(config.output, key, logger))
        stack.enter_context(Follower(Workspace(config.output).metrics_path, child.log_points))
        stack.enter_context(check_events.watched(Workspace(config.output).metrics_path, run, role, logger))
        progress = stack.enter_context(Progress(role, logger))
        if child.id and FACTS[config.stage].heavy:
            stack.enter_context(sampled(child.id))

        def take(line: str) -> None:
            logger.info("%s", line)
            progress.line(line)

        whole = not Workspace(config.output).root.exists()
        run_in_child(config, take, stop, settings().threads_per_slot)  # same for all: one environment, one fork server
    manifest = find(config.output, key)
    if manifest is None:
        raise XftError(f"{config.stage} succeeded but left no complete artifact in {str(config.output)!r}.")
    return manifest, whole


def _deliver(config: StageConfig, stop: threading.Event, logger: Logger) -> None:
    """Send the artifact to the object store. An unavailable store does not delay a stage: the run retries at its end."""
    try:
        artifacts.deliver(config.output, stop)
    except StoreUnavailable as error:
        logger.warning("Not sent to the store yet; the run continues. %s", error)


def _record(child: StageRun, config: StageConfig, manifest: Manifest, reused: bool, logger: Logger) -> bool:
    """Record the artifact in MLflow and return whether that succeeded. An unavailable MLflow does not delay a stage."""
    try:
        child.finish(config.output, manifest, reused)
    except TrackingUnavailable as error:
        logger.warning("Not recorded yet; the run continues. %s", error)
        return False
    return True


def _count(runtime: Any) -> int:
    return int(runtime.run_count or 0)
