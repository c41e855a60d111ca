"""The environment that ``xft ui`` gives its worker."""

from pathlib import Path

import pytest

from flows.local.worker import worker_environment
from tasks.settings import Settings


@pytest.mark.parametrize(("known", "expected"), [(None, "http://127.0.0.1:5000"), ("https://seen.example", "https://seen.example")])
def test_the_worker_knows_where_everything_is(known: str | None, expected: str) -> None:
    current = Settings(
        home=Path("/home"), tracking_uri="sqlite:////home/mlflow.db", compute_slots=1, copy_limit_mb=1, mlflow_ui=known)
    told = worker_environment(current, "http://127.0.0.1:4200/api", "http://127.0.0.1:5000")
    assert told["XFT_MLFLOW_UI_URL"] == expected
    assert told["MLFLOW_TRACKING_URI"] == "sqlite:////home/mlflow.db"
    assert (told["XFT_HOME"], told["PREFECT_API_URL"]) == ("/home", "http://127.0.0.1:4200/api")
