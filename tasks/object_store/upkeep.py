"""List the store's artifacts (local, or in the object store), verify them, and find what no run refers to any more."""

import logging
import shutil
import threading
import time
from calendar import timegm
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.object_store import artifacts as remote
from tasks.object_store import file_sets, run_records
from tasks.object_store.bucket import Bucket, StoredObject, StoreRefused, store
from tasks.settings import settings
from xft_core.errors import ArtifactError, XftError
from xft_core.files.disk import locked
from xft_core.files.temporary import temporary_directory
from xft_core.store import artifacts
from xft_core.store.manifest import MANIFEST, TIME, Manifest, read_manifest

logger = logging.getLogger(__name__)

DAY_SECONDS = 86400


@dataclass(frozen=True)
class Stored:
    """One artifact: ``size`` in bytes, ``created`` in seconds since 1970, the recipe that made it."""

    stage: str
    key: str
    size: int
    created: float
    made_by: str


@dataclass(frozen=True)
class Removal:
    """Something that gc would remove: what it is, its size in bytes, why, and how to remove it."""

    what: str
    size: int
    why: str
    remove: Callable[[], None]


def bucket_in_force() -> Bucket:
    """Return the object store after checking that it answers. Raises XftError if XFT_STORE is not set."""
    bucket = store()
    if bucket is None:
        raise XftError("There is no object store. Set XFT_STORE=s3://bucket/prefix, or omit --s3 for the local store.")
    bucket.check()
    return bucket


def local_artifacts() -> list[Stored]:
    """Return this machine's artifacts, oldest first. Artifacts with an unreadable manifest are left to ``verify``."""
    found = []
    for path in _local_places():
        try:
            found.append(_stored(read_manifest(path), path.parent.name, path.name))
        except ArtifactError:
            continue
    return sorted(found, key=lambda item: item.created)


def remote_artifacts(bucket: Bucket) -> list[Stored]:
    """Return the object store's artifacts, oldest first."""
    found = []
    for place in _remote_places(bucket):
        try:
            _, stage, key = place.split("/")
            found.append(_stored(remote.read_manifest(bucket, place), stage, key))
        except ArtifactError:
            continue
    return sorted(found, key=lambda item: item.created)


def verify_local() -> Iterator[tuple[str, str | None]]:
    """Check every local artifact by size and sha256; yields (stage/key, error or None)."""
    for path in _local_places():
        yield f"{path.parent.name}/{path.name}", _problem(partial(artifacts.verify, path))


def verify_remote(bucket: Bucket) -> Iterator[tuple[str, str | None]]:
    """Like ``verify_local``, but downloads every object to a temporary place, one artifact at a time."""
    for place in _remote_places(bucket):
        yield place.partition("/")[2], _problem(partial(_download, bucket, place))


def garbage_local(days: float) -> list[Removal]:
    """Return everything that is older than ``days`` and that no run since then refers to: artifacts, work in progress, models
    and data fetched from addresses, run records."""
    before = _before(days)
    records = {
        str(path): (path.stat().st_mtime, record, path.stat().st_size, partial(path.unlink, missing_ok=True))
        for path, record in run_records.local_records().items()}
    used = _in_use({name: (written, record) for name, (written, record, _, _) in records.items()}, before)
    found = []
    for path in sorted(settings().artifacts.glob("*/*")):
        name, changed = f"{path.parent.name}/{path.name.partition('.')[0]}", path.lstat().st_mtime
        if not path.is_dir() or path.is_symlink() or name in used or changed >= before:
            continue
        why = "no run refers to it" if path.suffix == "" else "left behind"
        found.append(Removal(f"{path.parent.name}/{path.name}", _size(path), why, partial(_remove, path)))
    for path in sorted([*settings().models.glob("*"), *settings().data.glob("*")]):
        if path.is_dir() and path.lstat().st_mtime < before:
            name = f"{path.parent.name}/{path.name}"
            found.append(Removal(name, _size(path), "fetched, not used since", partial(_remove, path)))
    for name, (written, record, size, unlink) in records.items():
        if (record.updated if record else written) < before:
            found.append(Removal(f"runs/{Path(name).name}", size, "old", unlink))
    return found


def garbage_remote(bucket: Bucket, days: float) -> list[Removal]:
    """Like ``garbage_local``, for the object store. Includes parts of multipart uploads whose process was killed."""
    before = _before(days)
    records = run_records.records_in(bucket)
    used = _in_use(records, before) | {
        item.name.removeprefix(f"{remote.KEPT}/") for item in bucket.objects(f"{remote.KEPT}/")}
    found = []
    for kind in (remote.ARTIFACTS, remote.CHECKPOINTS):
        for place, objects in _grouped(bucket.objects(f"{kind}/")).items():
            if place.partition("/")[2] in used or max(item.modified for item in objects) >= before:
                continue
            size = sum(item.size for item in objects)
            found.append(Removal(place, size, "no run refers to it", partial(file_sets.remove_from, bucket, place)))
    for name, (written, record) in records.items():
        if (record.updated if record else written) < before:
            found.append(Removal(name, 0, "old", partial(bucket.delete, [name])))
    try:
        uploads = bucket.abandoned_uploads(before)
    except StoreRefused as error:  # not every server can list them, and not every key has the permission
        logger.warning("Unfinished uploads cannot be listed, so none are removed. %s", error)
        uploads = []
    for name, upload_id in uploads:
        found.append(Removal(name, 0, "upload never ended", partial(bucket.abort_upload, name, upload_id)))
    return found


def _before(days: float) -> float:
    if not days >= 0:
        raise XftError(f"--days is {days}. Give a number, 0 or more.")
    return time.time() - days * DAY_SECONDS


def _local_places() -> list[Path]:
    return sorted(path.parent for path in settings().artifacts.glob(f"*/*/{MANIFEST}") if "." not in path.parent.name)


def _remote_places(bucket: Bucket) -> list[str]:
    names = [item.name.split("/") for item in bucket.objects(f"{remote.ARTIFACTS}/")]
    return ["/".join(parts[:3]) for parts in names if len(parts) == 4 and parts[3] == MANIFEST]


def _grouped(objects: Iterator[StoredObject]) -> dict[str, list[StoredObject]]:
    groups: defaultdict[str, list[StoredObject]] = defaultdict(list)
    for item in objects:
        parts = item.name.split("/")
        if len(parts) > 3:
            groups["/".join(parts[:3])].append(item)
    return dict(groups)


def _stored(manifest: Manifest, stage: str, key: str) -> Stored:
    return Stored(
        stage, key, sum(entry.size for entry in manifest.files),
        timegm(time.strptime(manifest.created, TIME)), manifest.provenance.get("recipe", "-"))


def _in_use(records: Mapping[str, tuple[float, run_records.RunRecord | None]], since: float) -> set[str]:
    """Return the artifacts that runs refer to. Raises ArtifactError if a recent record is damaged: its references are unknown,
    so nothing may be removed."""
    used: set[str] = set()
    for name, (written, record) in records.items():
        if record is None and written >= since:
            raise ArtifactError(
                f"The run record {name!r} is damaged: the artifacts of its run are unknown, so nothing is removed. If that run "
                "will not be continued, delete the record and try again.")
        if record is not None and record.updated >= since:
            used.update(record.artifacts)
    return used


def _download(bucket: Bucket, place: str) -> None:
    manifest = remote.read_manifest(bucket, place)
    home = settings().home  # on the disk of the artifacts; /tmp may be small
    home.mkdir(parents=True, exist_ok=True)
    with temporary_directory("verify", home) as directory:
        file_sets.receive(bucket, place, manifest.files, directory, threading.Event())


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except ArtifactError as error:
        return str(error)
    return None


def _remove(path: Path) -> None:
    with locked(path.with_name(path.name.partition(".")[0]), wait=False) as is_free:
        if not is_free:
            return
        doomed = path.with_name(f"{path.name}.removed")  # one rename, so that a half-removed artifact is never visible
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
