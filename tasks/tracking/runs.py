"""MLflow: one parent run for a pipeline run, one child for each of its stages. Only this module and mlflow_model.py import it.

Runs are named by their ids throughout: MLflow's "active run" belongs to a thread, and stages run in several.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.references import PipelineRun
from tasks.settings import settings, without_credentials
from tasks.tracking.follower import Points
from tasks.variant_tags import VariantOf
from xft_core.errors import XftError
from xft_core.recipe.load import flatten
from xft_core.recipe.sections import Recipe
from xft_core.store.artifacts import Manifest
from xft_core.store.curves import read_metrics

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Logger = logging.Logger | logging.LoggerAdapter[Any]

# Stages of a comparison's variants are kept out of its own experiment: the table there compares variants.
STAGES_EXPERIMENT = "/stages"
METRICS_PER_CALL = 1000
CAUSE = re.compile(r"Caused by \w+\(.*: (.*?)['\")]*$")  # what requests puts at the end of a long line
EXPERIMENTS = 1000  # that are searched for a run


class TrackingUnavailable(XftError):
    """MLflow did not take what it was given. What was computed is kept; the same command delivers it."""

    may_pass = True


def client() -> "MlflowClient":
    """The client for the tracking server in force. Takes seconds at the first call: mlflow is imported here."""
    return _client(settings().tracking_uri)


_client_lock = threading.Lock()  # two threads must not make the tables of a new database at once


def _client(uri: str) -> "MlflowClient":
    with _client_lock:
        return _new_client(uri)


@lru_cache(maxsize=4)
def _new_client(uri: str) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    if settings().tracking_is_local:
        settings().home.mkdir(parents=True, exist_ok=True)
    made = MlflowClient(tracking_uri=uri)
    made.search_experiments(max_results=1)  # a local database gets its tables now, under the lock
    return made


@contextmanager
def explained(place: Path | None = None) -> Iterator[None]:
    """Whatever MLflow raises as TrackingUnavailable. ``place``: where the results are that it does not take."""
    try:
        yield
    except XftError:
        raise
    except Exception as error:
        kept = f"They are in {str(place)!r}" if place else "They are kept"
        raise TrackingUnavailable(
            f"MLflow at {settings().tracking_shown} does not take the results: {reason(error)} {kept}; the same run again "
            "delivers them.") from error


def open_run(
    recipe: Recipe, flow_run_id: str, name: str, kind: str = "pipeline", sections: frozenset[str] | None = None,
    without: frozenset[str] = frozenset(), variant: VariantOf | None = None,
) -> PipelineRun:
    """The parent run of a pipeline run: new, or the one that an earlier attempt of the same flow run opened.

    ``kind``: the tag that tells it from runs of another flow. ``sections``: parts of the recipe that play a role in it;
    ``without``: fields that have no one value. A ``variant`` is a child of its comparison's run.

    Raises TrackingUnavailable when MLflow cannot be reached, XftError when the experiment was deleted in it.
    """
    try:
        experiment_id = stages_id = _experiment_id(recipe.experiment)
        if variant or kind == "comparison":
            stages_id = _experiment_id(recipe.experiment + STAGES_EXPERIMENT)
        run_id = _find_run(experiment_id, flow_run_id, kind)
        if run_id:
            client().update_run(run_id, status="RUNNING")
        else:
            tags = {"xft.kind": kind, "xft.recipe": recipe.name, "prefect.flow_run_id": flow_run_id}
            if variant:
                tags |= {"xft.variant": variant.name, "xft.group": variant.group}
                if parent := _find_run(experiment_id, variant.comparison, "comparison"):
                    tags["mlflow.parentRunId"] = parent
            run_id = str(client().create_run(experiment_id, run_name=name, tags=tags).info.run_id)
            _log(run_id, params={
                field: value for field, value in flatten(recipe).items()
                if field not in without and (sections is None or field.partition(".")[0] in sections)})
    except XftError:
        raise
    except Exception as error:
        raise TrackingUnavailable(f"MLflow at {settings().tracking_shown} cannot be used: {reason(error)}") from error
    return PipelineRun(recipe=recipe, flow_run_id=flow_run_id, experiment_id=stages_id, mlflow_run_id=run_id)


def end_run(run_id: str, status: str) -> None:
    """Set a run's final status: FINISHED, FAILED or KILLED."""
    client().set_terminated(run_id, status)


def experiment_of(run_id: str) -> str:
    """The experiment that a run belongs to."""
    return str(client().get_run(run_id).info.experiment_id)


def close_runs(flow_run_id: str, status: str) -> None:
    """Set the run of a flow run, and those of its stages, from RUNNING to ``status``: FINISHED, FAILED or KILLED.

    One that this tracking server does not know is no error.
    """
    experiments = [item.experiment_id for item in client().search_experiments(max_results=EXPERIMENTS)]
    found = client().search_runs(
        experiments, f"tags.`prefect.flow_run_id` = '{flow_run_id}' and attributes.status = 'RUNNING'")
    for run in sorted(found, key=lambda run: run.data.tags.get("xft.kind") != "stage"):  # the parent last
        end_run(run.info.run_id, status)


def log_summary(run_id: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
    """Numbers and notes of a whole run, without steps."""
    now = int(time.time() * 1000)
    _log(run_id, metrics=[(name, value, now, 0) for name, value in metrics.items()], tags=tags)


def log_data_set(run_id: str, name: str, digest: str, source: str, profile: str) -> None:
    """Note the instruction data as an input of the run (``digest`` is cut to MLflow's 36 characters)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data_set = Dataset(name=name, digest=digest[:36], source_type="local", source=source, profile=profile)
    client().log_inputs(run_id, datasets=[DatasetInput(data_set, [InputTag("mlflow.data.context", "training")])])


class StageRun:
    """The child run of one stage. Nothing here raises while the stage works: what MLflow does not take is kept, and
    given again.

    ``again``: an earlier attempt within the same pipeline run may have opened it already.
    """

    def __init__(self, run: PipelineRun, stage: str, role: str, logger: Logger, again: bool = False) -> None:
        self._run, self._stage, self._role, self._logger = run, stage, role, logger
        self._again = again
        self._warned = False
        self._sent: dict[str, int] = {}  # last step delivered, by name of the curve
        self.id: str | None = None
        self._tolerate(self._open)

    def log_points(self, points: Points) -> bool:
        """Deliver those points of curves that were not delivered yet; returns whether all are now."""
        return self._tolerate(lambda: self._deliver(points))

    def finish(self, directory: Path, manifest: Manifest, reused: bool) -> None:
        """Deliver what is missing, the final numbers and where they come from, and end the run well.

        Raises TrackingUnavailable when MLflow does not take them.
        """
        try:
            self._deliver(read_metrics(directory / "metrics.jsonl"))
            self._conclude(directory, manifest, reused)
        except Exception as error:
            raise TrackingUnavailable(
                f"MLflow at {settings().tracking_shown} does not take the results of {self._role}: {reason(error)} "
                "The artifact itself is kept; the same command delivers them.") from error

    def _conclude(self, directory: Path, manifest: Manifest, reused: bool) -> None:
        run_id = self._open()
        now = int(time.time() * 1000)
        tags = {"xft.reused": str(reused).lower(), "xft.key": manifest.key, "xft.digest": manifest.digest,
                "xft.path": str(directory)}
        if (maker := manifest.provenance.get("mlflow_run_id")) and maker != run_id:
            tags["xft.made_by_run_id"] = maker
        final = scalars(manifest.metrics) | {"stage_seconds": manifest.seconds}
        _log(run_id, params=_flat(manifest.config), metrics=[
            (f"final/{name}", value, now, 0) for name, value in final.items()], tags=tags)
        end_run(run_id, "FINISHED")

    def end(self, status: str) -> None:
        """End the run as FAILED or KILLED, if MLflow can be reached."""
        if self.id is not None:
            self._tolerate(lambda: end_run(str(self.id), status))

    def _open(self) -> str:
        if self.id is None and self._again:
            self._reopen()
        if self.id is None:
            self.id = client().create_run(self._run.experiment_id, run_name=self._role.replace("_", "-"), tags={
                "mlflow.parentRunId": self._run.mlflow_run_id, "xft.kind": "stage", "xft.stage": self._stage,
                "xft.role": self._role, "prefect.flow_run_id": self._run.flow_run_id}).info.run_id
        return self.id

    def _reopen(self) -> None:
        found = client().search_runs(
            [self._run.experiment_id],
            f"tags.`mlflow.parentRunId` = '{self._run.mlflow_run_id}' and tags.`xft.role` = '{self._role}'",
            max_results=1)
        if found:
            run_id = found[0].info.run_id
            self._sent = {
                name: max(point.step for point in client().get_metric_history(run_id, name))
                for name in found[0].data.metrics if not name.startswith("final/")}
            client().update_run(run_id, status="RUNNING")
            self.id = run_id

    def _deliver(self, points: Points) -> None:
        run_id = self._open()
        fresh: list[tuple[str, float, int, int]] = []
        reached = dict(self._sent)
        for point in points:
            step = int(point["step"])
            for name, value in scalars(point["metrics"]).items():
                if step > reached.get(name, -1):
                    fresh.append((name, value, int(point["time"] * 1000), step))
                    reached[name] = step
        # Should an answer be lost and a point be sent twice, MLflow drops the double: time, step and value are equal.
        _log(run_id, metrics=fresh)
        self._sent = reached

    def _tolerate(self, call: Callable[[], object]) -> bool:
        try:
            call()
            return True
        except Exception as error:
            if not self._warned:
                self._logger.warning(
                    "MLflow does not answer. The work goes on, its numbers are delivered later. %s", reason(error))
                self._warned = True
            return False


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """The plain numbers among ``values``: what MLflow can show as metrics."""
    return {
        name: float(value) for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)}


def _find_run(experiment_id: str, flow_run_id: str, kind: str) -> str | None:
    found = client().search_runs(
        [experiment_id], f"tags.`prefect.flow_run_id` = '{flow_run_id}' and tags.`xft.kind` = '{kind}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _experiment_id(name: str) -> str:
    found = client().get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        location = settings().mlflow_artifacts.as_uri() if settings().tracking_is_local else None
        try:
            return str(client().create_experiment(name, artifact_location=location))
        except MlflowException:  # another run made it at the same moment
            found = client().get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise XftError(f"The MLflow experiment {name!r} was deleted. Restore it there, or choose another experiment.")
    return str(found.experiment_id)


def _log(
    run_id: str, metrics: Iterable[tuple[str, float, int, int]] = (), params: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Numbers as (name, value, time in ms, step), parameters and tags in as few calls as MLflow allows."""
    from mlflow.entities import Metric, Param, RunTag

    entries = [Metric(*entry) for entry in metrics]
    texts = [Param(name, _text(value)) for name, value in (params or {}).items()]
    notes = [RunTag(name, value) for name, value in (tags or {}).items()]
    client().log_batch(run_id, metrics=entries[:METRICS_PER_CALL - 200], params=texts[:100], tags=notes)
    for start in range(METRICS_PER_CALL - 200, len(entries), METRICS_PER_CALL):
        client().log_batch(run_id, metrics=entries[start:start + METRICS_PER_CALL])
    for start in range(100, len(texts), 100):
        client().log_batch(run_id, params=texts[start:start + 100])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def reason(error: Exception) -> str:
    """The first line of what went wrong; a server's address with a password in it may be a part of that."""
    lines = without_credentials(str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    cause = CAUSE.search(lines[0])
    return f"{cause[1]}." if cause else lines[0]
