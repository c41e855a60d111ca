from tests.tasks import environment  # noqa: F401, I001  (first: it decides where all files are kept)

import logging
from collections.abc import Iterator

import pytest

from tasks.tracking import runs
from tasks.references import PipelineRun
from tests.tasks.tracking.mlflow_server import mlflow_server  # noqa: F401  (fixture)
from tests.tasks.object_store.proxy import s3  # noqa: F401  (fixture)
from tests.tasks.object_store.servers import ceph, moto
from xft_core.recipe.sections import Recipe


@pytest.fixture(scope="session", params=["moto", pytest.param("ceph", marks=pytest.mark.slow)])
def s3_server(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Yield two real S3 servers over HTTP, one after the other. Ceph runs only with the slow tests."""
    with (ceph if request.param == "ceph" else moto)() as address:
        yield address


@pytest.fixture
def s3_name(request: pytest.FixtureRequest) -> str:
    """Return the name of the S3 server in use."""
    return str(request.node.callspec.params["s3_server"])


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[PipelineRun]:
    """Start a pipeline run in the session's real SQLite MLflow, in its own experiment."""
    recipe = Recipe(name="tiny", experiment=request.node.name[:100])
    yield runs.open_run(recipe, flow_run_id=f"flow-of-{request.node.name}", name="tiny")


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("tests.tasks")
