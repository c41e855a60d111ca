"""The MLflow run of one stage: parameters, metrics and curves below the run of the pipeline. Training curves also appear live
on the pipeline's run, so that ``moe/loss``, ``sft/loss``, ``mix/loss`` of many runs are in one chart."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.prefect_log import Logger, reason
from tasks.references import PipelineRun
from tasks.settings import settings
from tasks.tracking.client import TrackingUnavailable, client, log_batch, scalars
from tasks.tracking.follower import Points
from tasks.tracking.runs import end_run
from tasks.tracking.source import source_tags
from xft_core.recipe.steps import MIXED, TUNED
from xft_core.store.curves import read_metrics
from xft_core.store.manifest import Manifest

# The roles and curves that the run of the pipeline shows, with the parts of their names there.
SHOWN_ROLES = {role: model for model, role in TUNED.items()} | {MIXED: "mix"}
SHOWN_CURVES = {
    "loss": "loss", "learning_rate": "learning_rate", "balance_loss": "balance_loss", "router_entropy": "router_entropy",
    "expert_load_min": "expert_load_min", "expert_load_max": "expert_load_max", "mean_shared_weight": "mean_shared_weight",
    "held_out_nll": "held_out_nll_while_training"}  # the plain name is that of the final metric
Curve = list[tuple[str, float, int, int]]  # name, value, time in ms, step
Steps = dict[str, set[int]]


class StageRun:
    """The child run of one stage. Nothing here raises while the stage works: if MLflow does not accept data, it is kept and
    sent again.

    ``again``: an earlier attempt within the same pipeline run may have opened it already.
    """

    def __init__(self, run: PipelineRun, stage: str, role: str, logger: Logger, again: bool = False) -> None:
        self._run, self._stage, self._role, self._logger = run, stage, role, logger
        self._again = again
        self._warned = False
        self._sent: Steps = {}  # delivered, by name of the curve
        self._parameters = run.told_apart_by
        self.id: str | None = None
        self._tolerate(self._open)

    def log_points(self, points: Points) -> bool:
        """Deliver the points of curves that were not delivered yet; returns whether all are delivered now."""
        return self._tolerate(lambda: self._deliver(points))

    def finish(self, directory: Path, manifest: Manifest, reused: bool) -> None:
        """Deliver missing points, the final metrics and their origin, and end the run as FINISHED.

        Raises TrackingUnavailable if MLflow does not accept them.
        """
        try:
            self._conclude(directory, manifest, reused)
        except Exception as error:
            raise TrackingUnavailable(
                f"MLflow at {settings().tracking_shown} does not accept the results of {self._role}: {reason(error)} "
                "The artifact itself is kept; the same command delivers them.") from error

    def _conclude(self, directory: Path, manifest: Manifest, reused: bool) -> None:
        run_id = self._open()
        now = int(time.time() * 1000)
        tags = {"xft.reused": str(reused).lower(), "xft.key": manifest.key, "xft.digest": manifest.digest,
                "xft.path": str(directory)}
        if (maker := manifest.provenance.get("mlflow_run_id")) and maker != run_id:
            tags["xft.made_by_run_id"] = maker
        final = scalars(manifest.metrics) | {"stage_seconds": manifest.seconds}
        curves, sent = self._fresh(read_metrics(directory / "metrics.jsonl"))
        self._show(curves)
        log_batch(run_id, params=_flat(manifest.config) | self._parameters, metrics=[
            *curves, *((f"final/{name}", value, now, 0) for name, value in final.items())], tags=tags)
        self._sent = sent
        end_run(run_id, "FINISHED")

    def end(self, status: str) -> None:
        """End the run as FAILED or KILLED, if MLflow can be reached."""
        if self.id is not None:
            self._tolerate(lambda: end_run(str(self.id), status))

    def _open(self) -> str:
        if self.id is None and self._again:
            self._reopen()
        if self.id is None:
            role, variant = self._role.replace("_", "-"), self._run.variant
            tags = {"mlflow.parentRunId": self._run.mlflow_run_id, "xft.kind": "stage", "xft.stage": self._stage,
                    "xft.role": self._role, "prefect.flow_run_id": self._run.flow_run_id} | self._parameters
            self.id = client().create_run(
                self._run.experiment_id, run_name=f"{role} {variant}" if variant else role,
                tags=tags | source_tags(self._stage) | ({"xft.variant": variant} if variant else {})).info.run_id
        return self.id

    def _reopen(self) -> None:
        found = client().search_runs(
            [self._run.experiment_id],
            f"tags.`mlflow.parentRunId` = '{self._run.mlflow_run_id}' and tags.`xft.role` = '{self._role}'",
            max_results=1)
        if found:
            run_id = found[0].info.run_id
            self._sent = {
                name: {point.step for point in client().get_metric_history(run_id, name)}
                for name in found[0].data.metrics if not name.startswith(("final/", "system/"))}
            client().update_run(run_id, status="RUNNING")
            self.id = run_id

    def _deliver(self, points: Points) -> None:
        run_id = self._open()
        fresh, sent = self._fresh(points)
        # If an answer is lost and a point is sent twice, MLflow drops the duplicate: time, step and value are equal.
        self._show(fresh)
        log_batch(run_id, metrics=fresh, params={} if self._sent else self._parameters)
        self._sent = sent

    def _show(self, fresh: Curve) -> None:
        """Send the pipeline's run its curves, before the stage's own run, which tells what both have."""
        if model := SHOWN_ROLES.get(self._role):
            shown = [(f"{model}/{SHOWN_CURVES[name]}", value, when, step)
                     for name, value, when, step in fresh if name in SHOWN_CURVES]
            if shown:
                log_batch(self._run.mlflow_run_id, metrics=shown)

    def _fresh(self, points: Points) -> tuple[Curve, Steps]:
        """Return the points whose steps were not delivered yet, and all steps after their delivery."""
        fresh: Curve = []
        sent = {name: set(steps) for name, steps in self._sent.items()}
        for point in points:
            step = int(point["step"])
            for name, value in scalars(point["metrics"]).items():
                steps = sent.setdefault(name, set())
                if step not in steps:
                    fresh.append((name, value, int(point["time"] * 1000), step))
                    steps.add(step)
        return fresh, sent

    def _tolerate(self, call: Callable[[], object]) -> bool:
        try:
            call()
            return True
        except Exception as error:
            if not self._warned:
                self._logger.warning(
                    "MLflow does not answer. The run continues, and its metrics are delivered later. %s", reason(error))
                self._warned = True
            return False


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
