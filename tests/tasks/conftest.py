from tests.tasks import environment  # noqa: F401, I001  (first: it decides where everything is kept)

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import tracking
from tasks.references import PipelineRun
from tests.tasks.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, raw_client
from xft_core.config import Recipe


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[PipelineRun]:
    """A pipeline run in the session's real SQLite MLflow, in an experiment of its own."""
    recipe = Recipe(name="tiny", experiment=request.node.name[:100])
    yield tracking.open_run(recipe, flow_run_id=f"flow-of-{request.node.name}", name="tiny")


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("tests.tasks")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """A real S3 server over HTTP for the test session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """An empty bucket behind a proxy, settings that name it, and a home of the test's own."""
    proxy = Proxy(s3_server)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    values = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
        "XFT_STORE": f"s3://{BUCKET}/some/prefix", "XFT_S3_ENDPOINT_URL": proxy.address, "XFT_HOME": str(tmp_path / "home")}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    client = raw_client(s3_server)
    client.create_bucket(Bucket=BUCKET)
    yield proxy
    proxy.stop()
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    for item in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=BUCKET, Key=item["Key"], UploadId=item["UploadId"])
    client.delete_bucket(Bucket=BUCKET)
