"""The artifacts that each pipeline run uses: one small JSON file per run, under XFT_HOME and in the object store.

``xft store gc`` keeps artifacts that a run of the last days refers to. A run notes an artifact before it makes or reuses it.
"""

import threading
import time
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tasks.object_store.bucket import Bucket, StoreUnavailable, safe_name, store
from tasks.references import PipelineRun
from tasks.settings import settings
from xft_core.files.digests import digest_of
from xft_core.files.disk import relative_path, write_whole

RUNS = "runs"

_lock = threading.Lock()  # the stages of a run note artifacts from several threads


class RunRecord(BaseModel):
    """One pipeline run: ``artifacts`` as <stage>/<key>; ``updated`` in seconds since 1970; ``sha256`` of all this."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flow_run_id: str
    recipe: str
    updated: float
    artifacts: list[Annotated[str, AfterValidator(relative_path)]]
    sha256: str = ""

    def fields_digest(self) -> str:
        """Return the sha256 (hex) of the other fields."""
        return digest_of(self.model_dump(exclude={"sha256"}))


def note(run: PipelineRun, artifact: str | None = None) -> None:
    """Record that ``run`` is alive and uses ``artifact`` (<stage>/<key>). An unavailable object store gets it with the next
    note; one that refuses raises StoreRefused."""
    name = safe_name(f"{run.flow_run_id}.json")
    with _lock:
        path = settings().runs / name
        before = _parse(path.read_bytes()) if path.is_file() else None
        known = before.artifacts if before else []
        record = RunRecord(
            flow_run_id=run.flow_run_id, recipe=run.recipe.name, updated=round(time.time(), 3),
            artifacts=sorted({*known, artifact} if artifact else known))
        record = record.model_copy(update={"sha256": record.fields_digest()})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, record.model_dump_json(indent=1))
        if (bucket := store()) is not None:
            try:
                bucket.put(f"{RUNS}/{name}", record.model_dump_json().encode())
            except StoreUnavailable:
                return


def renew(flow_run_id: str) -> None:
    """Record that the results of a run are in use now."""
    path = settings().runs / safe_name(f"{flow_run_id}.json")
    with _lock:
        record = _parse(path.read_bytes()) if path.is_file() else None
        if record is not None:
            record = record.model_copy(update={"updated": round(time.time(), 3)})
            write_whole(path, record.model_copy(update={"sha256": record.fields_digest()}).model_dump_json(indent=1))


def local_records() -> dict[Path, RunRecord | None]:
    """Return this machine's records by file; None for a damaged one."""
    return {path: _parse(path.read_bytes()) for path in sorted(settings().runs.glob("*.json")) if path.is_file()}


def records_in(bucket: Bucket) -> dict[str, tuple[float, RunRecord | None]]:
    """Return the records in the object store by name, each with its time of writing; None for a damaged one."""
    found = {}
    for item in bucket.objects(f"{RUNS}/"):
        if (content := bucket.get(item.name)) is not None:
            found[item.name] = (item.modified, _parse(content))
    return found


def _parse(content: bytes) -> RunRecord | None:
    try:
        record = RunRecord.model_validate_json(content)
        return record if record.sha256 == record.fields_digest() else None
    except (ValidationError, ValueError):
        return None
