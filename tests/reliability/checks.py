"""Checks that must pass after every kill and when the recipe is complete. Each raises AssertionError with the reason."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient

from tests.flows.conftest import RECIPE, REPOSITORY
from tests.reliability.services import MLFLOW, Services
from tests.tasks.object_store.proxy import BUCKET
from xft_core.files.digests import digest_of
from xft_core.store.artifacts import verify
from xft_core.store.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from tests.reliability.kill_harness import Round

IN_PROGRESS = (".partial", ".lock")
ENDED = {"FINISHED", "FAILED", "KILLED"}
STEPS = list(range(1, int(RECIPE["sft"]["max_steps"]) + 1))  # type: ignore[index, call-overload]


def artifacts(home: Path) -> list[Path]:
    """Return every directory of the local store that a reader could take for an artifact."""
    return [path for path in sorted((home / "artifacts").glob("*/*"))
            if path.is_dir() and not path.name.endswith(IN_PROGRESS) and ".xft-transfer-" not in path.name]


def digests(home: Path) -> dict[str, str]:
    """Return the digest of every artifact by its place."""
    return {f"{path.parent.name}/{path.name}": read_manifest(path).digest for path in artifacts(home)}


def store_is_whole(home: Path, services: Services, store: str) -> None:
    """Check size and sha256 of every file of every visible artifact, in the local store and in the object store."""
    for path in artifacts(home):
        verify(path)
        assert ".damaged" not in path.name, f"{path} was damaged"
    prefix = store.removeprefix(f"s3://{BUCKET}/")
    listed: dict[str, int] = {}
    for page in services.objects.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/"):
        listed |= {item["Key"]: item["Size"] for item in page.get("Contents", ())}
    for name in [name for name in listed if name.startswith(f"{prefix}/artifacts/") and name.endswith("/manifest.json")]:
        content = services.objects.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        manifest = Manifest.model_validate_json(content)
        place = digest_of([[entry.path, entry.sha256] for entry in manifest.files])[:16]
        for entry in manifest.files:
            key = f"{name.rpartition('/')[0]}/{place}/{entry.path}"
            assert listed.get(key) == entry.size, f"{key} is not whole in the object store"


def round_is_right(done: "Round", expected: dict[str, str]) -> None:
    """Check that the store is complete and has the bits of an undisturbed run, and that MLflow's records are correct."""
    store_is_whole(done.home, done.services, done.store)
    for where in ([], ["--s3"]):
        verified = subprocess.run(
            [sys.executable, "-m", "flows.cli", "store", "verify", *where], cwd=REPOSITORY, capture_output=True, text=True,
            env=done.services.environment(**done.services.run_environment(done.home, done.store)))
        assert verified.returncode == 0, verified.stdout + verified.stderr
    found = digests(done.home)
    different = {place for place in expected.keys() | found.keys() if expected.get(place) != found.get(place)}
    assert not {place for place in different if not place.startswith("report/")}, f"not bit-identical: {sorted(different)}"
    tracked(done)


def tracked(done: "Round") -> None:
    """Check for one parent run per attempt at most, all ended, and for a finished run's curves without gaps or duplicates."""
    done.services.wait_until_up(MLFLOW)
    client = MlflowClient(tracking_uri=done.services.mlflow)
    experiment = client.get_experiment_by_name(f"kills-{done.number}")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    parents = [run for run in runs if run.data.tags.get("xft.kind") == "pipeline"]
    flow_runs = Counter(run.data.tags["prefect.flow_run_id"] for run in parents)
    assert set(flow_runs.values()) == {1}, f"several parents of one attempt: {flow_runs}"
    assert len(parents) <= len(done.attempts), f"{len(parents)} parents of {len(done.attempts)} attempts"
    open_runs = [run.info.run_name for run in runs if run.info.status not in ENDED]
    assert not open_runs, f"not ended in MLflow: {open_runs}"
    whole = [run for run in parents if run.info.status == "FINISHED"]
    assert len(whole) == 1, f"{len(whole)} parents are FINISHED"
    stages: dict[str, Any] = {}
    for run in runs:
        if run.data.tags.get("mlflow.parentRunId") == whole[0].info.run_id:
            assert run.data.tags["xft.role"] not in stages, f"two runs of {run.data.tags['xft.role']}"
            stages[run.data.tags["xft.role"]] = run
    assert len(stages) == 15 and {run.info.status for run in stages.values()} == {"FINISHED"}, sorted(stages)
    for role in ("sft_moe", "sft_baseline"):
        for name in stages[role].data.metrics:
            steps = [point.step for point in client.get_metric_history(stages[role].info.run_id, name)]
            assert len(steps) == len(set(steps)), f"{role}, {name}: doubled steps {steps}"
            if name == "loss":
                assert steps == STEPS, f"{role}: steps {steps}"
    for run in runs:  # a killed attempt shows a part of the curve, in order and without duplicates
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == sorted(set(steps)), f"{run.info.run_name}: steps {steps}"
