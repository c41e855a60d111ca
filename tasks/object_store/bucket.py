"""Object stores: files by name below one prefix of an S3 bucket. The only module that imports boto3.

    XFT_STORE            s3://bucket/prefix; unset: everything is kept under XFT_HOME only
    XFT_S3_ENDPOINT_URL  a server other than Amazon's (or the standard AWS_ENDPOINT_URL_S3), with path-style addresses

boto3 reads the credentials itself (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role of the machine); this module never does.
Every request is signed together with the SHA-256 of its content (large objects go in parts, several at once). Servers should
refuse content with another SHA-256, but not all do: ``is_whole`` checks the stored content.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.object_store import etags
from tasks.object_store.refusals import NOT_OFFERED, explanation
from tasks.settings import is_loopback, settings
from tasks.stopping import RunStopped
from xft_core.errors import XftError, first_line
from xft_core.files.disk import relative_path

PART_BYTES = 32 * 1024 * 1024  # objects above this go in parts of this size; at most 10,000 parts: 320 GB
REQUESTS_AT_ONCE = 8
POLL_SECONDS = 0.05
CONNECT_SECONDS, READ_SECONDS = 10, 60
ATTEMPTS = 6  # for every request, including the first; boto3 retries with growing pauses
DELETE_AT_ONCE = 1000
MOST_BYTES_AT_ONCE = 64 * 2**20  # of an object that is read into memory: manifests and records

# Refusals that may not happen again: a slow body, a checksum that the network corrupted.
PASSING_CODES = frozenset({"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
                           "OperationAborted", "ConditionalRequestConflict", "IncompleteBody"})
ABSENT_CODES = frozenset({"NoSuchKey", "404", "NotFound"})


class StoreRefused(XftError):
    """The object store refuses: wrong or expired credentials, no such bucket, no permission. A retry cannot help."""


class StoreUnavailable(XftError):
    """The object store does not answer, or answers with a server error. A retry may help; all local files are kept."""

    may_pass = True


@dataclass(frozen=True)
class StoredObject:
    """One object: name below the prefix, size in bytes, time of writing (seconds since 1970), and the server's tag of its
    content, which changes with the content."""

    name: str
    size: int
    modified: float
    etag: str


def store() -> "Bucket | None":
    """The object store of the settings, None without one. Raises XftError for an invalid setting."""
    address = settings().store
    return None if address is None else bucket_at(address)


def bucket_at(address: str, named_by: str = "XFT_STORE") -> "Bucket":
    """Return the objects below ``address`` (s3://bucket/prefix). ``named_by``: setting or field to correct if it is wrong."""
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(("AWS_", "XFT_S3_"))))
    with _making:
        return _bucket(address, named_by, environment)


_making = threading.Lock()  # creating a client reads files and is not thread-safe; using one is


@lru_cache(maxsize=8)
def _bucket(address: str, named_by: str, environment: tuple[tuple[str, str], ...]) -> "Bucket":
    return Bucket(address, named_by)


def safe_name(name: str) -> str:
    """Return ``name`` if it is a plain relative path (see ``artifacts.relative_path``). Raises StoreRefused otherwise."""
    try:
        return relative_path(name)
    except ValueError as error:
        raise StoreRefused(f"{error}, so it cannot name a file in the store. Nothing was read or written.") from None


def _is_plain(name: str) -> bool:
    try:
        return name == "" or bool(relative_path(name.removesuffix("/")))  # a trailing slash: consoles call that a folder
    except ValueError:
        return False


class Bucket:
    """Objects below one prefix. Names never contain the prefix; every call raises StoreRefused or StoreUnavailable."""

    def __init__(self, address: str, named_by: str) -> None:
        self.address, self._named_by = address, named_by
        parts = urlsplit(address)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        with self._explained():
            self._client = _client()

    def check(self) -> None:
        """Send one cheap request, to find wrong credentials or a missing bucket before any work."""
        with self._explained():
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._key("runs/"), MaxKeys=1)

    def get(self, name: str) -> bytes | None:
        """Return a small object's content; None if there is no such object."""
        with self._explained(absent_is_fine=True):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            if answer["ContentLength"] > MOST_BYTES_AT_ONCE:
                raise StoreRefused(
                    f"{self.address}/{name} has {answer['ContentLength']:,} bytes, but should be a small file. Find out what "
                    "put it there, then remove it.")
            return bytes(answer["Body"].read())
        return None

    def put(self, name: str, content: bytes, only_new: bool = False) -> bool:
        """Write a small object in one request; with ``only_new``, never over an existing one. Returns whether it was written.

        Raises StoreUnavailable if the store then has different content; with ``only_new``, that content is removed.
        """
        arguments = {"Bucket": self._bucket, "Key": self._key(name), "Body": content}
        from botocore.exceptions import ClientError

        with self._explained():
            try:
                answer = self._client.put_object(**arguments, **({"IfNoneMatch": "*"} if only_new else {}))
            except ClientError as error:
                code = _code(error)
                if only_new and code in ("PreconditionFailed", "412"):
                    return False
                if not (only_new and code in NOT_OFFERED):
                    raise
                answer = self._client.put_object(**arguments)  # a store without conditional writes keeps the last one
        if answer.get("ETag", "").strip('"') != etags.of(content) and self.get(name) != content:
            if only_new:
                self.delete([name])
            raise StoreUnavailable(f"{self.address} accepted {name!r} but stored other content. Try again.")
        return True

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object whose name starts with ``prefix``, sorted by name. Skips objects whose names cannot be ours (see
        ``safe_name``): they are neither read nor removed."""
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(prefix))
            for page in pages:
                for item in page.get("Contents", ()):
                    if _is_plain(name := self._name(item["Key"])):
                        yield StoredObject(
                            name, item["Size"], item["LastModified"].timestamp(), item.get("ETag", ""))

    def delete(self, names: Iterable[str]) -> None:
        """Remove these objects. Missing ones are not an error."""
        keys = [{"Key": self._key(name)} for name in names]
        from botocore.exceptions import ClientError

        with self._explained():
            for start in range(0, len(keys), DELETE_AT_ONCE):
                some = keys[start:start + DELETE_AT_ONCE]
                try:
                    answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": some, "Quiet": True})
                except ClientError as error:
                    if _code(error) not in NOT_OFFERED:
                        raise
                    for key in some:  # the server deletes only one at a time
                        self._client.delete_object(Bucket=self._bucket, **key)
                    continue
                for failure in answer.get("Errors", ()):
                    raise StoreRefused(
                        f"{self.address} does not allow deleting {self._name(failure['Key'])!r}: "
                        f"{explanation(failure.get('Code', ''), failure.get('Message'))}")

    def delete_below(self, prefix: str) -> None:
        """Remove every object whose name starts with ``prefix``."""
        self.delete([item.name for item in self.objects(prefix)])

    def upload(self, files: dict[str, Path], stop: threading.Event) -> None:
        """Send files by object name, several at once. Raises RunStopped if ``stop`` is set; then no parts remain."""
        self._transfer(files, stop, lambda manager, name, path: manager.upload(
            str(path), self._bucket, self._key(name)))

    def download(self, files: dict[str, Path], stop: threading.Event) -> None:
        """Fetch objects into files, several at once. Missing objects leave no file. Raises RunStopped."""
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        self._transfer(files, stop, lambda manager, name, path: manager.download(
            self._bucket, self._key(name), str(path)), absent_is_fine=True)

    def _transfer(
        self, files: dict[str, Path], stop: threading.Event, begin: Callable[[Any, str, Path], Any],
        absent_is_fine: bool = False,
    ) -> None:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        config = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=REQUESTS_AT_ONCE)
        with self._explained(stop), create_transfer_manager(self._client, config) as manager:
            waiting = [begin(manager, name, path) for name, path in files.items()]
            try:
                while waiting:
                    for future in [item for item in waiting if item.done()]:
                        waiting.remove(future)
                        with self._explained(stop, absent_is_fine):
                            future.result()
                    if stop.wait(POLL_SECONDS):
                        raise RunStopped("The run was stopped while files were on their way from or to the store.")
            except BaseException:
                for future in waiting:  # when it closes, the manager aborts their multipart uploads
                    future.cancel()
                raise

    def is_whole(self, item: StoredObject, path: Path, sha256: str, stop: threading.Event) -> bool:
        """Return whether the object's content equals the file at ``path``, which has this ``sha256`` (hex).

        Compares the server's tag if it is an MD5; otherwise reads the object. Raises RunStopped.
        """
        if item.size != path.stat().st_size:
            return False
        return etags.matches(item.etag, path, PART_BYTES, stop) or self._sha256(item.name, stop) == sha256

    def _sha256(self, name: str, stop: threading.Event) -> str | None:
        digest = hashlib.sha256()
        with self._explained(absent_is_fine=True):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
            for block in body.iter_chunks(etags.READ_BYTES):
                if stop.is_set():
                    raise RunStopped("The run was stopped while files were compared with the store.")
                digest.update(block)
            return digest.hexdigest()
        return None

    def abandoned_uploads(self, before: float) -> list[tuple[str, str]]:
        """Return (name, id) of multipart uploads that started before ``before`` (seconds since 1970): abandoned by a killed
        process."""
        with self._explained():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._key(""))
            return [(name, item["UploadId"]) for page in pages for item in page.get("Uploads", ())
                    if _is_plain(name := self._name(item["Key"])) and item["Initiated"].timestamp() < before]

    def abort_upload(self, name: str, upload_id: str) -> None:
        """Discard the parts of a multipart upload."""
        with self._explained(absent_is_fine=True):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key(name), UploadId=upload_id)

    def _key(self, name: str) -> str:
        if name:
            safe_name(name.removesuffix("/"))
        return f"{self._prefix}/{name}" if self._prefix else name

    def _name(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/") if self._prefix else key

    @contextmanager
    def _explained(self, stop: threading.Event | None = None, absent_is_fine: bool = False) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except (BotoCoreError, ClientError, RetriesExceededError) as error:
            if stop is not None and stop.is_set():
                raise RunStopped("The run was stopped while files were on their way from or to the store.") from None
            if not (absent_is_fine and _code(error) in ABSENT_CODES):
                raise self._error(error) from None  # boto3's own traces are long, and may hold request headers

    def _error(self, error: Exception) -> XftError:
        from botocore import exceptions as known

        if isinstance(error, known.ClientError):
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            if code == "NoSuchBucket":
                return StoreRefused(f"There is no bucket {self._bucket!r}. Create it, or correct {self._named_by} "
                                    f"({self.address}).")
            if code in NOT_OFFERED or (status < 500 and status != 429 and code not in PASSING_CODES):
                return StoreRefused(
                    f"{self.address} refuses: {explanation(code, error.response.get('Error', {}).get('Message'))}")
            return self._away(f"{code} ({status})")
        if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError):
            return StoreRefused(
                f"{self.address} needs credentials, which are missing or incomplete. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment of the run.")
        passing = (known.HTTPClientError, known.ConnectionError, known.IncompleteReadError, known.FlexibleChecksumError)
        if isinstance(error, known.BotoCoreError) and not isinstance(error, passing):
            return StoreRefused(f"{self.address} cannot be used: {error}")
        return self._away(first_line(error))

    def _away(self, reason: str) -> XftError:
        return StoreUnavailable(
            f"{self.address} does not answer correctly: {reason}. All finished work is kept under "
            f"{str(settings().home)!r}; the same command continues and delivers it.")


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _client() -> Any:
    import boto3.session
    from botocore.config import Config

    endpoint = settings().s3_endpoint
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        proxies={} if endpoint and is_loopback(endpoint) else None,  # None: boto3 reads the environment
        connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, tcp_keepalive=True,
        max_pool_connections=2 * REQUESTS_AT_ONCE,
        # Disables the trailer checksums that boto3 adds by default over https: many servers refuse such requests (Ceph 16,
        # MissingContentLength). The SHA-256 in the signature is older, and covers the content as well.
        request_checksum_calculation="when_required",
        s3={"payload_signing_enabled": True, **({"addressing_style": "path"} if endpoint else {})})
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
