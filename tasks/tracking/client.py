"""All access to MLflow: one client for each tracking server, with explained failures."""

import math
import posixpath
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.prefect_log import reason
from tasks.settings import settings
from xft_core.errors import XftError
from xft_core.files.digests import digest_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

METRICS_PER_CALL = 1000
LONGEST_KEY = 250  # MLflow's limit for a parameter's name
OWN_CODE = [Path(__file__).parents[2] / name for name in ("flows", "tasks", "xft_core")]
_client_lock = threading.Lock()  # two threads must not create the tables of a new database at once


class TrackingUnavailable(XftError):
    """MLflow did not accept the results. They are kept, and the same command delivers them."""

    may_pass = True


class TrackingRefused(TrackingUnavailable):
    """MLflow answers, but refuses the results. A retry only helps if two runs wrote at once."""


def client() -> "MlflowClient":
    """Return the client for the current tracking server. The first call takes seconds, because it imports mlflow."""
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
    made.search_experiments(max_results=1)  # creates the tables of a local database now, under the lock
    return made


@contextmanager
def explained(place: Path | None = None) -> Iterator[None]:
    """Turn errors of MLflow into TrackingUnavailable. ``place``: where the results are that it does not accept.

    Errors in this project's own code pass through: treated as outages, they would be retried for minutes."""
    try:
        yield
    except XftError:
        raise
    except Exception as error:
        if _is_own_mistake(error):
            raise
        kept = f"They are in {str(place)!r}" if place else "They are kept"
        raise (TrackingRefused if _is_refusal(error) else TrackingUnavailable)(
            f"MLflow at {settings().tracking_shown} does not accept the results: {reason(error)} {kept}; to deliver them, "
            "start the same run again.") from error


def _is_refusal(error: Exception) -> bool:
    """Return whether MLflow says that the request is wrong. A proxy in front of an unavailable server sends other codes."""
    return getattr(error, "error_code", None) in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def _is_own_mistake(error: Exception) -> bool:
    """Return whether a line of this project raised an exception that indicates a bug."""
    if not isinstance(error, AssertionError | AttributeError | LookupError | NameError | TypeError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and any(Path(trace.tb_frame.f_code.co_filename).is_relative_to(place) for place in OWN_CODE)


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Return the plain numbers among ``values``, which MLflow can show as metrics."""
    return {
        name: float(value) for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)}


def log_batch(
    run_id: str, metrics: Iterable[tuple[str, float, int, int]] = (), params: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Log metrics as (name, value, time in ms, step), parameters and tags in as few calls as MLflow allows."""
    from mlflow.entities import Metric, Param, RunTag

    entries = [Metric(*entry) for entry in metrics]
    texts = [Param(key, _text(value)) for key, value in _with_keys(params or {}).items()]
    notes = [RunTag(name, value) for name, value in (tags or {}).items()]
    client().log_batch(run_id, metrics=entries[:METRICS_PER_CALL - 200], params=texts[:100], tags=notes)
    for start in range(METRICS_PER_CALL - 200, len(entries), METRICS_PER_CALL):
        client().log_batch(run_id, metrics=entries[start:start + METRICS_PER_CALL])
    for start in range(100, len(texts), 100):
        client().log_batch(run_id, params=texts[start:start + 100])


def _with_keys(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters under names that MLflow accepts. Some contain a user's text: the name of a run or of an arm."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        key = re.sub(r"[^\w.\- :/]", "_", name)
        if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
            key = key.replace("/", "_")
        if key != name or len(key) > LONGEST_KEY:  # two names may have become the same
            mark = f" {digest_of(name)[:6]}" if key in found or key in params or len(key) > LONGEST_KEY else ""
            key = key[:LONGEST_KEY - len(mark)] + mark
        found[key] = value
    return found


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
