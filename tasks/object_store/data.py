"""Data at an address: fetched into XFT_HOME before its stage's key is computed, so that the key covers its contents.

    s3://bucket/prefix/rows.jsonl        one object
    s3://bucket/prefix/                  all data objects below it; with * in its last part, those that match
    https://host/rows.csv                one file, if there is a network

    <XFT_HOME>/data/<digest of what is at the address>/    where it is fetched to

Uses neither Prefect nor MLflow.
"""

import fnmatch
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from tasks.object_store import file_sets, models
from tasks.object_store.bucket import Bucket, StoredObject, StoreUnavailable, bucket_at
from tasks.prefect_log import Logger
from tasks.settings import S3_ADDRESS, settings
from tasks.stopping import RunStopped
from xft_core.errors import DataError
from xft_core.files.data_files import is_shard
from xft_core.files.digests import digest_of
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.recipe.sections import DataConfig

WEB = ("https://", "http://")
PATHS = ("path", "held_out_path", "reserved_path")
SECONDS, BLOCK = 60.0, 2**20
ASK_SECONDS, GONE = 10.0, (404, 410)
NAME_LENGTH = 32  # hexadecimal digits of the digest that names a directory


def is_address(name: str) -> bool:
    """Return whether ``name`` is an address of data to fetch."""
    return name.startswith((models.SCHEME, *WEB))


def checks(names: Iterable[str]) -> dict[str, Callable[[], object]]:
    """Return checks that the addresses among ``names`` have data, without fetching it, by the name that preconditions use for
    data."""
    return {f"data {name}": partial(_check, name) for name in names if is_address(name)}


def fetched(fields: dict[str, Any], stop: threading.Event, logger: Logger) -> dict[str, Any]:
    """Return a stage's fields with paths of fetched files in place of data addresses. Raises DataError for an address without
    data; StoreRefused, StoreUnavailable, RunStopped."""
    data = fields.get("data")
    if not isinstance(data, DataConfig):
        return fields
    found = {field: str(fetch(name, stop, logger)) for field in PATHS if (name := getattr(data, field)) and is_address(name)}
    return fields | {"data": data.model_copy(update=found)} if found else fields


def fetch(address: str, stop: threading.Event, logger: Logger) -> Path:
    """Fetch an address and return its local file, or directory of several. No transfer if it is here and unchanged there."""
    return _from_web(address, stop, logger) if address.startswith(WEB) else _from_store(address, stop, logger)


def _check(address: str) -> None:
    if not address.startswith(WEB):
        _offer(address)
        return
    _name_at(address)
    with _told(address):
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ASK_SECONDS).close()
        except urllib.error.HTTPError as error:
            if error.code in GONE:  # other codes may concern the HEAD request, not the address
                raise


def _offer(address: str) -> tuple[Bucket, list[StoredObject]]:
    """Return the objects at an S3 address, with names below its last directory."""
    place, _, name = address.rpartition("/")
    if not S3_ADDRESS.fullmatch(place) or not set(name) <= {*"*?", *_PLAIN}:
        shown = "" if "@" in address else f" ({address[:200]!r})"  # it may contain a password
        raise DataError(
            f"data.path{shown} is not s3://bucket/prefix: letters, digits and ._=- in the prefix, * in its last part, "
            "no credentials. Those belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in AWS_PROFILE.")
    bucket = bucket_at(place, "data.path")
    plain = name.split("*")[0].split("?")[0]
    listed = [item for item in bucket.objects(plain) if item.size]
    if not name:
        found = [item for item in listed if is_shard(item.name)]
    else:
        found = [item for item in listed if fnmatch.fnmatchcase(item.name, name)]
        if not found and plain == name:
            found = [item for item in listed if item.name.startswith(f"{name}/") and is_shard(item.name)]
    if not found:
        raise DataError(f"There is no data at {address}: no object has that name, and no data object is below it.")
    return bucket, found


_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._=-"


def _from_store(address: str, stop: threading.Event, logger: Logger) -> Path:
    bucket, offered = _offer(address)
    name = digest_of(sorted([item.name, item.size, item.etag] for item in offered))[:NAME_LENGTH]
    directory = settings().data / name
    with locked(directory), disk_full_is_an_error(directory):
        if not directory.is_dir():
            with file_sets.beside(directory) as arriving:
                bucket.download({item.name: arriving / item.name for item in offered}, stop)
                for item in offered:
                    path = arriving / item.name
                    if not path.is_file() or path.stat().st_size != item.size:
                        raise StoreUnavailable(f"{bucket.address}/{item.name} changed while it was fetched. Try again.")
                arriving.rename(directory)
            logger.info("Fetched %s to %s", address, directory)
        os.utime(directory)
    return directory / offered[0].name if len(offered) == 1 else directory


def _name_at(address: str) -> str:
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    if "@" in urlsplit(address).netloc or not is_shard(name) or name != Path(name).name:
        raise DataError(
            "A web address of data must end in the name of a data file, such as rows.jsonl or rows.csv.gz, and contain no "
            f"password{'' if '@' in address else f': {address[:200]!r} does not'}.")
    return name


def _from_web(address: str, stop: threading.Event, logger: Logger) -> Path:
    name = _name_at(address)
    with _told(address), urllib.request.urlopen(address, timeout=SECONDS) as answer:
        said = [address, *(answer.headers.get(field) for field in ("ETag", "Last-Modified", "Content-Length"))]
        directory = settings().data / digest_of(said)[:NAME_LENGTH]
        with locked(directory), disk_full_is_an_error(directory):
            if not directory.is_dir() or said[1:3] == [None, None]:  # the server does not say when it changes
                with file_sets.beside(directory) as arriving:
                    _receive(answer, arriving / name, said[3], stop)
                    if directory.is_dir():
                        os.replace(arriving / name, directory / name)
                    else:
                        arriving.rename(directory)
                logger.info("Fetched %s to %s", address, directory)
            os.utime(directory)
        return directory / name


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn errors of a web address into DataErrors."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise DataError(f"{address[:200]!r} has no data: the server answers {error.code} {error.reason}.") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{address[:200]!r} cannot be fetched: {reason}. If this machine has no network, fetch it on another machine "
            f"(curl -LO '{address[:200]}') and give the path of the file.") from None


def _receive(answer: Any, path: Path, length: str | None, stop: threading.Event) -> None:
    with path.open("wb") as stream:
        while block := answer.read(BLOCK):
            if stop.is_set():
                raise RunStopped("The run was stopped while data was fetched.")
            stream.write(block)
    if length is not None and path.stat().st_size != int(length):
        raise DataError(f"Only {path.stat().st_size} of {length} bytes of {path.name} arrived. Try again.")
