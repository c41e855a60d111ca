"""Artifacts in the object store. Stages work in the local store; other machines find the artifacts here.

    <prefix>/artifacts/<stage>/<key>/manifest.json    the artifact's own manifest; for its files, see file_sets.py
    <prefix>/kept/<stage>/<key>                       marks an artifact that something outside refers to, so that gc keeps it
"""

import logging
import threading
from pathlib import Path

from tasks.object_store import file_sets
from tasks.object_store.bucket import Bucket, store
from xft_core.errors import ArtifactError
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.store.artifacts import verify, without_advice
from xft_core.store.manifest import MANIFEST, Manifest, OtherVersion, parse_manifest

logger = logging.getLogger(__name__)

ARTIFACTS = "artifacts"
CHECKPOINTS = "checkpoints"
KEPT = "kept"


def place_of(output: Path, kind: str = ARTIFACTS) -> str:
    """Return where the artifact ``<store>/<stage>/<key>``, or its checkpoints, are below the prefix."""
    return f"{kind}/{output.parent.name}/{output.name}"


def fetch(output: Path, key: str, stop: threading.Event) -> Manifest | None:
    """Fetch the artifact of ``key`` from the object store to ``output``; None if it is missing or damaged.

    A damaged one is removed there, so that it is rebuilt. One that another version of this tool wrote is left alone.
    Raises StoreUnavailable, StoreRefused, RunStopped.
    """
    bucket = store()
    if bucket is None:
        return None
    with locked(output, wait=False) as is_free, disk_full_is_an_error(output):
        if not is_free or output.exists():  # another run on this machine works on it, and may be training
            return None
        place = place_of(output)
        content = bucket.get(file_sets.manifest_name(place))
        if content is None:
            return None
        try:
            manifest = checked_manifest(content, f"{bucket.address}/{place}", key)
            with file_sets.beside(output) as directory:
                file_sets.receive(bucket, place, manifest.files, directory, stop)
                (directory / MANIFEST).write_bytes(content)
                verify(directory)
                directory.rename(output)
        except OtherVersion as error:  # other machines may use that version
            logger.warning("%s It is left there and rebuilt here.", without_advice(error))
            return None
        except ArtifactError as error:
            logger.warning("%s It is removed there and rebuilt.", without_advice(error))
            file_sets.discard(bucket, place)
            return None
    return manifest


def deliver(output: Path, stop: threading.Event) -> bool:
    """Copy the published artifact ``output`` to the object store, unless it is there. Returns whether it was sent.

    Removes its checkpoints there, which are no longer needed. Raises ArtifactError for a file that was altered here,
    StoreUnavailable, StoreRefused, RunStopped.
    """
    bucket = store()
    if bucket is None:
        return False
    place = place_of(output)
    content = (output / MANIFEST).read_bytes()
    manifest = checked_manifest(content, repr(str(output)))
    if _is_there(bucket, place, manifest.key):
        return False
    sent = file_sets.send(bucket, place, output, manifest.files, content, stop, only_new=True)
    if not sent:
        _remove_own_files(bucket, place, manifest)
    bucket.delete_below(place_of(output, CHECKPOINTS) + "/")
    return sent


def keep(output: Path) -> str | None:
    """Protect the delivered artifact ``output`` from gc, and return the address of its files; None without an object store.
    Raises ArtifactError if it is not there, StoreUnavailable, StoreRefused."""
    bucket = store()
    if bucket is None:
        return None
    place = place_of(output)
    bucket.put(place_of(output, KEPT), b"")
    return f"{bucket.address}/{file_sets.content_place(place, read_manifest(bucket, place).files)}"


def read_manifest(bucket: Bucket, place: str) -> Manifest:
    """Return the manifest of an artifact in the object store. Raises ArtifactError if it is missing or damaged."""
    content = bucket.get(file_sets.manifest_name(place))
    if content is None:
        raise ArtifactError(f"{bucket.address}/{place} has no {MANIFEST}: it was never finished, or is being removed.")
    return checked_manifest(content, f"{bucket.address}/{place}")


def checked_manifest(content: bytes, where: str, key: str | None = None) -> Manifest:
    """Return the manifest in ``content``, after checking that all its paths are safe. Raises ArtifactError, naming ``where``,
    if it is damaged or has another ``key``."""
    manifest = parse_manifest(content, f"The manifest of {where}")
    if key is not None and manifest.key != key:
        raise ArtifactError(f"{where} holds another artifact (key {manifest.key[:12]}).")
    return manifest


def _is_there(bucket: Bucket, place: str, key: str) -> bool:
    """Return whether the store has the artifact's manifest. A damaged one is removed, with its files."""
    content = bucket.get(file_sets.manifest_name(place))
    if content is None:
        return False
    try:
        checked_manifest(content, f"{bucket.address}/{place}", key)
    except OtherVersion:
        return True
    except ArtifactError as error:
        logger.warning("%s It is removed there and sent again.", without_advice(error))
        file_sets.discard(bucket, place)
        return False
    return True


def _remove_own_files(bucket: Bucket, place: str, own: Manifest) -> None:
    """Remove the files that this machine sent, after another machine published the artifact first: they have no manifest."""
    try:
        theirs = read_manifest(bucket, place)
    except ArtifactError:  # removed or damaged since; this run's own artifact is intact
        return
    if file_sets.content_place(place, theirs.files) != file_sets.content_place(place, own.files):
        bucket.delete_below(file_sets.content_place(place, own.files) + "/")
