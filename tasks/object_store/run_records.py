"""Which artifacts a pipeline run uses: one small JSON file for each run, under XFT_HOME and in the object store.

``xft store gc`` keeps what a run of the last days refers to. A run notes an artifact before it makes or reuses it.
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

_lock = threading.Lock()  # stages of one run note theirs from several threads


class RunRecord(BaseModel):
    """One pipeline run: ``artifacts`` as <stage>/<key>; ``updated`` in seconds since 1970; ``sha256`` of all this."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    flow_run_id: str
    recipe: str
    updated: float
    artifacts: list[Annotated[str, AfterValidator(relative_path)]]
    sha256: str = ""

    def fields_digest(self) -> str:
        """sha256 (hex) of the other fields."""
        return digest_of(self.model_dump(exclude={"sha256"}))


def note(run: PipelineRun, artifact: str | None = None) -> None:
    """Write down that ``run`` is alive and uses ``artifact`` (<stage>/<key>). An object store that is away gets it with
    the next note; one that refuses raises StoreRefused."""
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
    """Write down that someone uses what a run left, here and now."""
    path = settings().runs / safe_name(f"{flow_run_id}.json")
    with _lock:
        record = _parse(path.read_bytes()) if path.is_file() else None
        if record is not None:
            record = record.model_copy(update={"updated": round(time.time(), 3)})
            write_whole(path, record.model_copy(update={"sha256": record.fields_digest()}).model_dump_json(indent=1))


def local_records() -> dict[Path, RunRecord | None]:
    """The records of this machine, by file; None for a damaged one."""
    return {path: _parse(path.read_bytes()) for path in sorted(settings().runs.glob("*.json")) if path.is_file()}


def records_in(bucket: Bucket) -> dict[str, tuple[float, RunRecord | None]]:
    """The records in the object store, by name, with the time when each was written; None for a damaged one."""
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
