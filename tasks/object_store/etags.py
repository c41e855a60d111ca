"""S3's tag for an object's content. It is usually an MD5, which shows whether the server stored what we sent.

    sent in one request     MD5 of the content
    sent in N parts         MD5 of the parts' MD5s, "-N"
    encrypted by some keys  anything: the tag is useless then, and the object must be read to be compared
"""

import hashlib
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from tasks.stopping import RunStopped

MB = 2**20
USUAL_PARTS = (8 * MB, 5 * MB, 10 * MB, 15 * MB, 16 * MB, 64 * MB, 100 * MB, 128 * MB)  # of common clients
READ_BYTES = MB
_TAG = re.compile(r'"?([0-9a-f]{32})(?:-(\d+))?"?')


def matches(etag: str, path: Path, part_bytes: int, stop: threading.Event) -> bool:
    """Return whether ``etag`` is the tag of the file's content, sent at once or in parts of ``part_bytes`` or a usual size.

    False says nothing about the content: tags need not be MD5s. Raises RunStopped.
    """
    found = _TAG.fullmatch(etag.strip().lower())
    if found is None:
        return False
    digest, number = found[1], found[2]
    size = path.stat().st_size
    if number is None:
        return _md5(path, max(size, 1), stop) == [digest]
    candidates = dict.fromkeys(part for part in (part_bytes, *USUAL_PARTS) if math.ceil(size / part) == int(number))
    return any(_of_parts(_md5(path, part, stop)) == digest for part in candidates)


def of(content: bytes) -> str:
    """Return the tag of content that was sent in one request."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _of_parts(digests: list[str]) -> str:
    return of(b"".join(bytes.fromhex(digest) for digest in digests))


def _md5(path: Path, part_bytes: int, stop: threading.Event) -> list[str]:
    """Return the MD5 of each part of the file; for an empty file, the MD5 of no bytes."""
    digests: list[str] = []
    with path.open("rb") as stream:
        while True:
            digest = hashlib.md5(usedforsecurity=False)
            length = 0
            for block in _blocks(stream, part_bytes, stop):
                digest.update(block)
                length += len(block)
            if length or not digests:
                digests.append(digest.hexdigest())
            if length < part_bytes:
                return digests


def _blocks(stream: object, most: int, stop: threading.Event) -> Iterator[bytes]:
    while most > 0 and (block := stream.read(min(READ_BYTES, most))):  # type: ignore[attr-defined]
        if stop.is_set():
            raise RunStopped("The run was stopped while files were compared with the store.")
        most -= len(block)
        yield block
