"""Errors that count as MLflow being unavailable: those of MLflow and of the network, not mistakes in this project's code."""

import json
from pathlib import Path

import pytest

from tasks.tracking.client import TrackingUnavailable, explained, scalars


def test_a_mistake_of_ours_is_no_outage() -> None:
    with pytest.raises(AttributeError), explained():
        scalars(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("raised", [OSError("connection refused"), RuntimeError("database is locked"), ValueError("no JSON")])
def test_what_comes_from_outside_is_explained(raised: Exception, tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable, match="does not accept the results"), explained(tmp_path):
        raise raised


def test_mlflow_that_stumbles_is_explained() -> None:
    from mlflow.entities import Metric

    with pytest.raises(TrackingUnavailable), explained():
        Metric.from_dictionary({})


def test_a_library_that_stumbles_over_an_answer_is_explained() -> None:
    with pytest.raises(TrackingUnavailable), explained():
        json.loads(None)  # type: ignore[arg-type]
