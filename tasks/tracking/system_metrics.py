"""Machine load while a stage runs: CPU, memory, disk, network and NVIDIA GPUs, as MLflow samples them."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tasks.settings import settings

SECONDS_TO_END = 5.0


@contextmanager
def sampled(run_id: str) -> Iterator[None]:
    """While the block runs, log metrics ``system/...`` to ``run_id`` every ten seconds (MLflow's own settings change that).

    This never fails or delays a stage: after an outage of MLflow, the rest of the stage has no such metrics.
    """
    monitor = None
    with suppress(Exception):
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=settings().tracking_uri)
        monitor.start()
    try:
        yield
    finally:
        if monitor is not None:  # a hanging server must not delay a cancelled run
            ending = threading.Thread(target=monitor.finish, name="end of system metrics", daemon=True)
            ending.start()
            ending.join(SECONDS_TO_END)
