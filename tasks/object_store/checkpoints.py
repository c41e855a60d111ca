"""A stage's checkpoints in the object store, from which another machine can continue the run.

    <prefix>/checkpoints/<stage>/<key>/    the newest complete checkpoint, as tasks/object_store/file_sets.py describes

It is sent while the stage runs. An unavailable store causes a warning, never a failed stage. Kept until the artifact is there.
"""

import os
import shutil
import threading
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.object_store import file_sets
from tasks.object_store.artifacts import CHECKPOINTS, place_of
from tasks.object_store.bucket import Bucket, store
from tasks.prefect_log import Logger
from tasks.stopping import RunStopped
from xft_core.errors import ArtifactError, XftError, first_line
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.store.checkpoints import PREFIX, SEAL, step_of
from xft_core.store.manifest import FileEntry, entries
from xft_core.store.workspace import KEY_MARKER, Workspace

POLL_SECONDS = 2.0
BETWEEN_UPLOADS_SECONDS = 30.0  # at most this much work is lost beyond the stage's own checkpoint interval
WAIT_AT_END_SECONDS = 10.0


class Snapshot(BaseModel):
    """The files of a checkpoint, and the stage key of its work."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    key: str
    files: list[FileEntry]


def restore(output: Path, key: str, stop: threading.Event, logger: Logger) -> bool:
    """Fetch the last checkpoint of this work from the object store, if this machine has no progress on it.

    Returns whether it did. A damaged checkpoint is removed there. Raises StoreUnavailable, StoreRefused, RunStopped.
    """
    bucket = store()
    if bucket is None:
        return False
    workspace, place = Workspace(output), place_of(output, CHECKPOINTS)
    with locked(output, wait=False) as is_free, disk_full_is_an_error(output):
        if not is_free or _has_progress(workspace, key):
            return False
        content = bucket.get(file_sets.manifest_name(place))
        if content is None:
            return False
        try:
            snapshot = _parse(content, f"{bucket.address}/{place}")
            if snapshot.key != key:
                raise ArtifactError(f"{bucket.address}/{place} belongs to other work (key {snapshot.key[:12]}).")
            for entry in snapshot.files:
                file_sets.safe_name(entry.path)
            with file_sets.beside(output) as directory:
                file_sets.receive(bucket, place, snapshot.files, directory, stop)
                (directory / KEY_MARKER).write_text(key, encoding="utf-8")
                shutil.rmtree(workspace.root, ignore_errors=True)
                directory.rename(workspace.root)
        except ArtifactError as error:
            logger.warning("The checkpoint in the store cannot be used: %s The stage starts from the beginning.", error)
            file_sets.discard(bucket, place)
            return False
    logger.info("Resuming from the checkpoint in %s", bucket.address)
    return True


class Keeper:
    """While its ``with`` block runs, a thread sends every new checkpoint of ``output``'s work to the object store."""

    def __init__(self, output: Path, key: str, logger: Logger) -> None:
        self._bucket = store()
        self._output, self._key, self._logger = output, key, logger
        self._workspace, self._place = Workspace(output), place_of(output, CHECKPOINTS)
        self._done = threading.Event()
        self._sent: object = None
        self._warned = False
        self._thread = threading.Thread(target=self._follow, name=f"checkpoints of {output.name}", daemon=True)

    def __enter__(self) -> "Keeper":
        if self._bucket is not None:
            self._sent = _state(self._workspace)  # a restored checkpoint need not be sent
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(WAIT_AT_END_SECONDS)  # a hanging store must not delay a cancelled run

    def _follow(self) -> None:
        assert self._bucket is not None
        last = -BETWEEN_UPLOADS_SECONDS
        while not self._done.wait(POLL_SECONDS):
            if time.monotonic() - last < BETWEEN_UPLOADS_SECONDS:
                continue
            try:
                state = _state(self._workspace)
                if state in (None, self._sent):
                    continue
                self._send(self._bucket)
                self._sent, self._warned = state, False
            except RunStopped:
                return
            except (XftError, OSError) as error:
                if not self._warned:
                    self._logger.warning("A checkpoint could not be sent to the store; the run continues. %s", error)
                self._warned = True
            last = time.monotonic()

    def _send(self, bucket: Bucket) -> None:
        with file_sets.beside(self._output) as directory:
            _copy(self._workspace, directory)
            files = entries(directory)
            before = _read(bucket, self._place)
            content = Snapshot(key=self._key, files=files).model_dump_json().encode()
            file_sets.send(bucket, self._place, directory, files, content, self._done, only_new=False)
            if before is not None:
                old = file_sets.content_place(self._place, before.files)
                if old != file_sets.content_place(self._place, files):
                    bucket.delete_below(old + "/")


def _has_progress(workspace: Workspace, key: str) -> bool:
    marker = workspace.root / KEY_MARKER
    is_own = marker.is_file() and marker.read_text(encoding="utf-8") == key
    return is_own and workspace.checkpoints.is_dir() and any(workspace.checkpoints.iterdir())


def _newest(workspace: Workspace) -> Path | None:
    """Return the newest sealed checkpoint. The process that resumes from it checks it."""
    sealed = [path.parent for path in workspace.checkpoints.glob(f"{PREFIX}*/{SEAL}")]
    return max(sealed, key=step_of, default=None)


def _loose_files(workspace: Workspace) -> list[Path]:
    try:
        return [path for path in sorted(workspace.checkpoints.iterdir())
                if path.is_file() and path.suffix != ".tmp" and path.stat().st_size]
    except FileNotFoundError:  # not started, or just published
        return []


def _state(workspace: Workspace) -> object:
    """Return a value that changes when there is something new to send; None if there is nothing."""
    newest, loose = _newest(workspace), _loose_files(workspace)
    return (newest and newest.name, [(path.name, path.stat().st_mtime_ns) for path in loose]) if newest or loose else None


def _copy(workspace: Workspace, directory: Path) -> None:
    """Hard-link the newest complete checkpoint (the stage soon removes it, but the links stay), and copy the other files, which
    grow during the transfer."""
    checkpoints = directory / workspace.checkpoints.name
    checkpoints.mkdir()
    if (newest := _newest(workspace)) is not None:
        shutil.copytree(newest, checkpoints / newest.name, copy_function=_link)
    for path in _loose_files(workspace):
        shutil.copyfile(path, checkpoints / path.name)
    if workspace.metrics_path.is_file():
        shutil.copyfile(workspace.metrics_path, directory / workspace.metrics_path.name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _read(bucket: Bucket, place: str) -> Snapshot | None:
    content = bucket.get(file_sets.manifest_name(place))
    try:
        return None if content is None else _parse(content, place)
    except ArtifactError:
        return None


def _parse(content: bytes, where: str) -> Snapshot:
    try:
        return Snapshot.model_validate_json(content)
    except ValidationError as error:
        raise ArtifactError(f"{where} has an unreadable list of files ({first_line(error)}).") from None
