"""Open a pipeline run in MLflow before its stages, and end it with its real status, even if it is cancelled."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect import get_run_logger
from prefect.runtime import flow_run

from tasks import prefect_log
from tasks.execution import ownership
from tasks.execution.delivery import insist
from tasks.execution.start_page import show_start
from tasks.home import check_place, open_home
from tasks.object_store import run_records
from tasks.object_store.bucket import store
from tasks.prefect_log import Logger, reason
from tasks.references import PipelineRun
from tasks.stopping import RunStopped, stop_event, stop_with
from tasks.tracking import runs
from tasks.tracking.client import explained
from tasks.variant_tags import variant_of
from xft_core.errors import XftError
from xft_core.files.disk import disk_full_is_an_error
from xft_core.recipe.sections import Recipe

prefect_log.install()


@contextmanager
def opened(
    recipe: Recipe, kind: str = "pipeline", sections: frozenset[str] | None = None, without: frozenset[str] = frozenset(),
) -> Iterator[PipelineRun]:
    """Open the MLflow parent run of the current flow run, of this ``kind``. Its parameters are the recipe's ``sections`` (all
    unless given) ``without`` some fields. It ends as FINISHED, FAILED, or, if cancelled, KILLED.

    An object store that refuses access (credentials, no such bucket) ends it before any work. Cancelling also ends the running
    stages, whose child processes would otherwise continue. Raises RunStopped if it belongs to a comparison that was stopped.
    """
    logger = get_run_logger()
    current = open_home(logger.warning)
    check_place(current)
    if (bucket := store()) is not None:
        bucket.check()
    owners, flow_run_id = current.locks / "runs", str(flow_run.id)
    variant = variant_of(flow_run.tags or ()) if kind == "pipeline" else None
    if variant:
        stop_with(flow_run_id, variant.comparison)
    name = variant.name if variant else str(flow_run.name) + (f" seed={recipe.seed}" if kind == "pipeline" else "")
    with suppress(Exception):  # MLflow is unavailable, which opening the run reports; they are closed another time
        ownership.close_abandoned(owners, runs.close_runs)
    status, run = "FAILED", None
    # Owned before anything is open in MLflow, because a kill may come at any time.
    with disk_full_is_an_error(current.home), ownership.owned(owners, flow_run_id) as owner:
        try:
            run = runs.open_run(recipe, flow_run_id, name, kind, sections, without, variant)
            logger.info("MLflow run %s in experiment %r", run.mlflow_run_id, recipe.experiment)
            run_records.note(run)
            show_start(run, kind, sections, bool(without), logger)
            yield run
            status = "FINISHED"
        except RunStopped:
            status = "KILLED"
            raise
        except Exception:
            raise
        except BaseException:
            status = "KILLED"
            stop_event(flow_run_id).set()
            raise
        finally:
            if run is not None:
                with suppress(XftError, OSError):  # the run's own error matters more
                    run_records.note(run)
            try:
                _close(flow_run_id, status, logger)
            except Exception as error:
                owner.told = status
                if run is not None:
                    logger.warning("MLflow does not answer; the next run here will end this one there as %s. %s",
                                   status, reason(error))


def _close(flow_run_id: str, status: str, logger: Logger) -> None:
    def close() -> None:
        with explained():
            runs.close_runs(flow_run_id, status)

    if status == "FINISHED":
        insist(close, stop_event(flow_run_id), logger)
    else:
        close()
