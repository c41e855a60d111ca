"""Which artifacts a pipeline run uses: one small JSON file for each run, under XFT_HOME and in the object store.

``xft store gc`` keeps what a run of the last days refers to. A run notes an artifact before it makes or reuses it.
"""

import os
import threading
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.references import PipelineRun
from tasks.settings import settings
from tasks.storage import Bucket, StoreUnavailable, safe_name, store

RUNS = "runs"

_lock = threading.Lock()  # stages of one run note theirs from several threads


class RunRecord(BaseModel):
    """One pipeline run: ``artifacts`` as <stage>/<key>; ``updated`` in seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flow_run_id: str
    recipe: str
    updated: float
    artifacts: list[str]


def note(run: PipelineRun, artifact: str | None = None) -> None:
    """Write down that ``run`` is alive and uses ``artifact`` (<stage>/<key>). An object store that is away gets it with
    the next note; one that refuses raises StoreRefused."""
    name = safe_name(f"{run.flow_run_id}.json")
    with _lock:
        path = settings().runs / name
        before = _read(path)
        known = before.artifacts if before else []
        record = RunRecord(
            flow_run_id=run.flow_run_id, recipe=run.recipe.name, updated=round(time.time(), 3),
            artifacts=sorted({*known, artifact} if artifact else known))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        os.replace(temporary, path)
        if (bucket := store()) is not None:
            try:
                bucket.put(f"{RUNS}/{name}", record.model_dump_json().encode())
            except StoreUnavailable:
                return


def local_records() -> dict[Path, RunRecord]:
    """The readable records of this machine, by file."""
    return {path: record for path in sorted(settings().runs.glob("*.json")) if (record := _read(path))}


def records_in(bucket: Bucket) -> dict[str, RunRecord]:
    """The readable records in the object store, by name."""
    found = {}
    for item in bucket.objects(f"{RUNS}/"):
        if record := _parse(bucket.get(item.name)):
            found[item.name] = record
    return found


def _read(path: Path) -> RunRecord | None:
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return None


def _parse(content: bytes | None) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(content) if content else None
    except ValidationError:
        return None
