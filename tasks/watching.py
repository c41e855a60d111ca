"""Compute a digest of data to compare with an earlier one. Data is a file, a glob, a directory, or an S3 address."""

from pathlib import Path

from tasks import prefect_log
from tasks.object_store.bucket import bucket_at
from xft_core.errors import DataError
from xft_core.files.digests import digest_of, file_digest
from xft_core.files.locate import DATA_SUFFIXES, local_path

prefect_log.install()

S3 = "s3://"


def data_digest(path: str) -> str:
    """Return the sha256 of the contents of a file, or of all files of a glob or directory. For S3, it covers names, sizes and
    ETags, so that nothing is fetched. Raises DataError if there is no data, StoreRefused, StoreUnavailable.
    """
    if path.startswith(S3):
        return _in_s3(path.rstrip("/"))
    place = local_path(path)
    if place.is_file():
        return file_digest(place)
    if "*" in path:
        place = local_path(str(Path(path.partition("*")[0]).parent if not path.startswith("*") else Path()))
        files = sorted(item for item in place.glob(str(Path(path).expanduser().relative_to(place))) if item.is_file())
    else:
        files = sorted(item for item in place.rglob("*") if item.is_file())
    if not files:
        raise DataError(f"There is nothing to watch at {path!r}. Name a file, a directory with files, or s3://bucket/prefix.")
    return digest_of([[str(item.relative_to(place)), file_digest(item)] for item in files])


def _in_s3(address: str) -> str:
    above, _, name = address.rpartition("/")
    if Path(name).suffix.lower() in DATA_SUFFIXES:
        found = [item for item in bucket_at(above, "path").objects(name) if item.name == name]
    else:
        found = list(bucket_at(address, "path").objects(""))
    if not found:
        raise DataError(f"There is nothing to watch at {address}: no object has this address or is below it.")
    return digest_of(sorted([item.name, item.size, item.etag] for item in found))
