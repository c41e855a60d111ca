"""Sets of files in the object store: an artifact or a checkpoint. A set is valid once its manifest is there.

    <place>/manifest.json                lists the files with sizes and sha256; written last, once, in one request
    <place>/<digest of the files>/...    the files

Two machines that produce the same artifact at once write the same bytes, or (curves hold times of day) write into separate
directories: the final manifest always lists files that no other machine writes to.
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
    """Return the name of the object that makes the files of ``place`` valid."""
    return f"{place}/{MANIFEST}"


def content_place(place: str, files: list[FileEntry]) -> str:
    """Return where the files themselves are."""
    return f"{place}/{content_name(files)}"


def content_name(files: list[FileEntry]) -> str:
    """Return the name of the files' directory, below their place."""
    return digest_of([[entry.path, entry.sha256] for entry in files])[:DIGEST_LENGTH]


def send(
    bucket: Bucket, place: str, directory: Path, files: list[FileEntry], manifest: bytes, stop: threading.Event,
    only_new: bool,
) -> bool:
    """Upload ``files`` of ``directory``, then the manifest. Returns False if ``only_new`` and another was there first.

    Files that an interrupted attempt has sent are not sent again. Sent files are compared with the local ones before the
    manifest is written, because servers accept files that were altered in transit. Raises ArtifactError for a local file that
    does not match ``files``, StoreUnavailable, StoreRefused, RunStopped.
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
        raise StoreUnavailable(f"{bucket.address} accepted {missing[0].path!r} but did not store it intact. Try again.")
    return bucket.put(manifest_name(place), manifest, only_new)


def _missing(
    bucket: Bucket, content: str, directory: Path, files: list[FileEntry], stop: threading.Event,
) -> list[FileEntry]:
    """Return those of ``files`` that the store lacks below ``content``, or has with other contents."""
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

    Raises ArtifactError naming the first file that does not match the manifest even after a second download: the set is
    damaged.
    """
    wrong = list(files)
    there = {item.name: item.size for item in bucket.objects(content + "/")}
    for entry in files:
        if there.get(f"{content}/{entry.path}") not in (None, entry.size):  # before it fills a disk
            raise ArtifactError(f"{bucket.address}/{content}/{entry.path} is missing, truncated or altered.")
    for _ in range(2):
        bucket.download({f"{content}/{safe_name(entry.path)}": directory / entry.path for entry in wrong}, stop)
        wrong = [entry for entry in wrong if not _is_whole(directory, entry)]
        if not wrong:
            return
    raise ArtifactError(f"{bucket.address}/{content}/{wrong[0].path} is missing, truncated or altered.")


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
    """Yield a new directory on the same disk as ``output``, to be renamed. If it was not, it is removed when the block ends."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_directory("transfer", output=output) as directory:
        yield directory


def _is_whole(directory: Path, entry: FileEntry) -> bool:
    try:
        check_file(directory, entry)
    except ArtifactError:
        return False
    return True
