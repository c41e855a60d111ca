"""Sets of files in the object store: an artifact or a checkpoint. A set is valid once its manifest is there.

    <place>/manifest.json                says which files, with sizes and sha256; written last, once, in one request
    <place>/<digest of the files>/...    the files

Two machines that make the same at once write the same bytes, or (curves hold times of day) into directories of their
own: the manifest that stands always speaks of files that nobody else writes to.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.object_store.bucket import Bucket, StoreRefused, StoreUnavailable, safe_name
from xft_core.errors import ArtifactError
from xft_core.files.digests import digest_of
from xft_core.files.temporary import temporary_directory
from xft_core.store.manifest import MANIFEST, FileEntry, check_file

logger = logging.getLogger(__name__)

DIGEST_LENGTH = 16  # hexadecimal digits that name a directory; within one place, against chance only


def manifest_name(place: str) -> str:
    """Name of the object that makes the files of ``place`` valid."""
    return f"{place}/{MANIFEST}"


def content_place(place: str, files: list[FileEntry]) -> str:
    """Where the files themselves are."""
    return f"{place}/{content_name(files)}"


def content_name(files: list[FileEntry]) -> str:
    """Name of the directory of the files, below their place."""
    return digest_of([[entry.path, entry.sha256] for entry in files])[:DIGEST_LENGTH]


def send(
    bucket: Bucket, place: str, directory: Path, files: list[FileEntry], manifest: bytes, stop: threading.Event,
    only_new: bool,
) -> bool:
    """Upload ``files`` of ``directory``, then the manifest. Returns False if ``only_new`` and another was there first.

    What an interrupted attempt has left is not sent again. What was sent is compared with the files before the manifest is
    written, since servers take what was altered on the way. Raises ArtifactError for a file here that is not what ``files``
    says, StoreUnavailable, StoreRefused, RunStopped.
    """
    content = content_place(place, files)
    missing = _missing(bucket, content, directory, files, stop)
    for entry in missing:
        check_file(directory, entry)
    for _ in range(2):
        if not missing:
            return bucket.put(manifest_name(place), manifest, only_new)
        bucket.upload({f"{content}/{entry.path}": directory / entry.path for entry in missing}, stop)
        missing = _missing(bucket, content, directory, files, stop)
    if missing:
        raise StoreUnavailable(f"{bucket.address} took {missing[0].path!r} but does not have it whole. Try again.")
    return bucket.put(manifest_name(place), manifest, only_new)


def _missing(
    bucket: Bucket, content: str, directory: Path, files: list[FileEntry], stop: threading.Event,
) -> list[FileEntry]:
    """Those of ``files`` that the store does not have below ``content``, or has with another content."""
    there = {item.name: item for item in bucket.objects(content + "/")}

    def is_there(entry: FileEntry) -> bool:
        item = there.get(f"{content}/{entry.path}")
        return item is not None and bucket.is_whole(item, directory / entry.path, entry.sha256, stop)

    return [entry for entry in files if not is_there(entry)]


def receive(bucket: Bucket, place: str, files: list[FileEntry], directory: Path, stop: threading.Event) -> None:
    """Download the files of the manifest of ``place`` into ``directory``, see ``receive_from``."""
    receive_from(bucket, content_place(place, files), files, directory, stop)


def receive_from(bucket: Bucket, content: str, files: list[FileEntry], directory: Path, stop: threading.Event) -> None:
    """Download ``files``, which are below ``content``, into ``directory`` and verify each by size and sha256.

    Raises ArtifactError naming the first that is not what the manifest says, also at a second look: the set is damaged.
    """
    wrong = list(files)
    there = {item.name: item.size for item in bucket.objects(content + "/")}
    for entry in files:
        if there.get(f"{content}/{entry.path}") not in (None, entry.size):  # before it fills a disk
            raise ArtifactError(f"{bucket.address}/{content}/{entry.path} is gone, cut short or altered.")
    for _ in range(2):
        bucket.download({f"{content}/{safe_name(entry.path)}": directory / entry.path for entry in wrong}, stop)
        wrong = [entry for entry in wrong if not _is_whole(directory, entry)]
        if not wrong:
            return
    raise ArtifactError(f"{bucket.address}/{content}/{wrong[0].path} is gone, cut short or altered.")


def remove_from(bucket: Bucket, place: str) -> None:
    """Remove a set. The manifest goes first, so that the set is invalid from then on."""
    bucket.delete([manifest_name(place)])
    bucket.delete_below(place + "/")


def discard(bucket: Bucket, place: str) -> None:
    """Remove a damaged set; log a warning if the store does not allow it."""
    try:
        remove_from(bucket, place)
    except (StoreUnavailable, StoreRefused) as error:
        logger.warning("The damaged files below %s/%s could not be removed: %s", bucket.address, place, error)


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A new directory on the same disk as ``output``, to be renamed; gone when the block ends if it was not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_directory("transfer", output=output) as directory:
        yield directory


def _is_whole(directory: Path, entry: FileEntry) -> bool:
    try:
        check_file(directory, entry)
    except ArtifactError:
        return False
    return True
