"""A full run against a real MLflow server whose files are in the bucket of the object store. The report and the registered
model arrive there, gc of the object store leaves them alone, and no credentials are written anywhere."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import REPOSITORY
from tests.tasks.object_store.proxy import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, raw_client
from tests.tasks.tracking.mlflow_server import DESTINATION

pytestmark = pytest.mark.slow
PASSWORD = "tracking-password-that-must-not-be-written"
PREFIX = DESTINATION.removeprefix(f"s3://{BUCKET}/")


def xft(home: Path, tracking_uri: str, *arguments: str) -> str:
    """Run the command, which must succeed; return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"XFT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "DEBUG", "MLFLOW_TRACKING_URI": tracking_uri,
                    "MLFLOW_LOGGING_LEVEL": "DEBUG"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True,
        timeout=3600)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def objects(s3: Proxy, prefix: str = "") -> dict[str, bytes]:
    client = raw_client(s3.target)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {item["Key"]: client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            for page in pages for item in page.get("Contents", ())}


def everything(values: Any) -> Iterator[str]:
    """Yield every text in nested values."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from everything([name, value])
    elif isinstance(values, list | tuple | set):
        for value in values:
            yield from everything(value)
    else:
        yield str(values)


def test_reports_and_models_are_in_the_bucket_and_secrets_nowhere(
    s3: Proxy, mlflow_server: tuple[str, Path], recipe_file: Callable[..., Path], tmp_path: Path,
) -> None:
    from mlflow.tracking import MlflowClient

    address, server_directory = mlflow_server
    home = tmp_path / "home"
    with_password = address.replace("http://", f"http://me:{PASSWORD}@")
    model = f"s3://{BUCKET}/models/demo"  # fetched with the same credentials
    for path in (REPOSITORY / "xft_core" / "demo" / "model").iterdir():
        raw_client(s3.target).put_object(Bucket=BUCKET, Key=f"models/demo/{path.name}", Body=path.read_bytes())
    said = xft(home, with_password, "run", str(recipe_file(model={"path": model})))
    assert "registry tiny version 1, champion" in said

    arrived = objects(s3, PREFIX)
    for ending in ("report/comparison.md", "report/plots/results.png", "merged_model/model.safetensors",
                   "merged_model/MLmodel", "merged_model/README.md"):
        assert sum(key.endswith(ending) for key in arrived) == 1, ending
    said += xft(home, with_password, "store", "gc", "--s3", "--yes", "--days", "0")
    assert "Removed" in said
    assert objects(s3, PREFIX) == arrived
    assert not objects(s3, "some/prefix/artifacts")

    client = MlflowClient(address)
    experiments = [item.experiment_id for item in client.search_experiments()]
    texts = list(everything([run.to_dictionary() for run in client.search_runs(experiments, max_results=1000)]))
    texts += everything([dict(version) for version in client.search_model_versions()])
    assert any("merge.shared_expert_weight" in text for text in texts) and "tiny" in texts
    for secret in (ACCESS_KEY, SECRET_KEY, PASSWORD):
        assert secret not in said
        assert not [text for text in texts if secret in text]
        assert not [key for key, content in objects(s3).items() if secret.encode() in content]
        for directory in (home, server_directory):  # Prefect's database with parameters and logs, and MLflow's
            for path in directory.rglob("*"):
                assert not (path.is_file() and secret.encode() in path.read_bytes()), path
