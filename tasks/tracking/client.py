"""The only door to MLflow: one client for each tracking server, and its failures explained."""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.prefect_log import reason
from tasks.settings import settings
from xft_core.errors import XftError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

METRICS_PER_CALL = 1000
OWN_CODE = [Path(__file__).parents[2] / name for name in ("flows", "tasks", "xft_core")]
_client_lock = threading.Lock()  # two threads must not make the tables of a new database at once


class TrackingUnavailable(XftError):
    """MLflow did not take what it was given. What was computed is kept; the same command delivers it."""

    may_pass = True


class TrackingRefused(TrackingUnavailable):
    """MLflow answers, and refuses what it is given. It may take it the next time only if two runs wrote at once."""


def client() -> "MlflowClient":
    """The client for the tracking server in force. Takes seconds at the first call: mlflow is imported here."""
    return _client(settings().tracking_uri)


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
    """Whatever MLflow raises as TrackingUnavailable. ``place``: where the results are that it does not take.

    A mistake in this project's own code passes through: as an outage it would be retried for minutes."""
    try:
        yield
    except XftError:
        raise
    except Exception as error:
        if _is_own_mistake(error):
            raise
        kept = f"They are in {str(place)!r}" if place else "They are kept"
        raise (TrackingRefused if _is_refusal(error) else TrackingUnavailable)(
            f"MLflow at {settings().tracking_shown} does not take the results: {reason(error)} {kept}; the same run again "
            "delivers them.") from error


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow says that the request itself is wrong. A proxy before a server that is away answers with other codes."""
    return getattr(error, "error_code", None) in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def _is_own_mistake(error: Exception) -> bool:
    """Whether a line of this project raised what only a wrong program raises."""
    if not isinstance(error, AssertionError | AttributeError | LookupError | NameError | TypeError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and any(Path(trace.tb_frame.f_code.co_filename).is_relative_to(place) for place in OWN_CODE)


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """The plain numbers among ``values``: what MLflow can show as metrics."""
    return {
        name: float(value) for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)}


def log_batch(
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


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
