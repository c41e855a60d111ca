"""Where a model can be published: the Hub, an S3 address, a directory. Each takes files, and returns them for a check.

Repeating an interrupted call continues it: files that arrived intact are not sent again. A model only becomes visible when
complete: on the Hub with one commit, in S3 with its config.json, which goes last, in a directory by a rename.
"""

import os
import shutil
import threading
from abc import ABC, abstractmethod
from pathlib import Path

from tasks.object_store.bucket import Bucket, bucket_at
from tasks.settings import S3_ADDRESS
from xft_core.errors import XftError, first_line
from xft_core.files.digests import file_digest
from xft_core.files.locate import hub_is_offline

CONFIG = "config.json"


class CannotPublish(XftError):
    """A destination refuses, or cannot be used like this. Finished work is kept."""


class HubNotReached(XftError):
    """The Hub does not answer, or answers with an error that may pass."""

    may_pass = True


class Destination(ABC):
    """One place. ``send`` returns the model's address, which stays valid."""

    @abstractmethod
    def send(self, files: dict[str, Path], message: str, stop: threading.Event) -> str:
        """Publish files by name."""

    @abstractmethod
    def receive(self, address: str, names: list[str], target: Path, stop: threading.Event) -> None:
        """Fetch the files ``names`` from the address that ``send`` returned into the empty ``target``, as any user would."""


class Hub(Destination):
    """A repository on the Hub (set HF_ENDPOINT for a Hub other than huggingface.co).

    ``public``: whether anyone may see it. An existing repository is not changed: it must already have this setting.
    """

    def __init__(self, repository: str, public: bool, token: str | None) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id

        if hub_is_offline():
            raise CannotPublish("HF_HUB_OFFLINE is set, so nothing can be sent to the Hub. Unset it for this run.")
        try:
            validate_repo_id(repository)
        except ValueError as error:
            raise CannotPublish(f"{repository!r} is not a valid repository name: {first_line(error)}") from None
        self._repository, self._public = repository, public
        self._api = HfApi(token=token or os.environ.get("HF_TOKEN"))

    def send(self, files: dict[str, Path], message: str, stop: threading.Event) -> str:
        """See Destination."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        try:
            self._api.create_repo(self._repository, private=not self._public, exist_ok=True)
            found = self._api.repo_info(self._repository)
            if bool(found.private) == self._public:
                kind, wanted = ("private", "public") if found.private else ("public", "private")
                raise CannotPublish(
                    f"{self._repository} already exists and is {kind}, but should be {wanted}. Nothing was sent. Change it on "
                    f"the Hub, {'leave public off' if found.private else 'set public'}, or give another name.")
            there = set(self._api.list_repo_files(self._repository))
            old = [name for name in sorted(there - files.keys()) if _is_loaded(name)]
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in old)]
            commit = self._api.create_commit(self._repository, operations, commit_message=message)
        except Exception as error:
            raise _hub_error(self._repository, error) from None
        return f"{self._repository}@{commit.oid}"

    def receive(self, address: str, names: list[str], target: Path, stop: threading.Event) -> None:
        """See Destination."""
        from huggingface_hub import snapshot_download

        repository, _, revision = address.partition("@")
        try:
            snapshot_download(
                repository, revision=revision, local_dir=target, token=self._api.token, allow_patterns=names,
                endpoint=self._api.endpoint, cache_dir=target / ".cache")
        except Exception as error:
            raise _hub_error(repository, error) from None


class ObjectStore(Destination):
    """Below an S3 address; credentials and endpoint as for XFT_STORE."""

    def __init__(self, address: str) -> None:
        if not S3_ADDRESS.fullmatch(address):
            shown = "" if "@" in address else f" ({address[:200]!r})"  # it may contain a password
            raise CannotPublish(f"The S3 address{shown} must be s3://bucket/prefix, without credentials.")
        self._address = address.rstrip("/")

    def send(self, files: dict[str, Path], message: str, stop: threading.Event) -> str:
        """See Destination."""
        bucket = self._bucket(self._address)
        there = {item.name: item for item in bucket.objects("") if "/" not in item.name}
        if foreign := sorted(there.keys() - files.keys()):
            raise CannotPublish(
                f"{self._address} has {foreign[0]!r}, which is not part of this model. Nothing was sent. Give another address.")
        missing = {
            name: path for name, path in files.items()
            if name not in there or there[name].size != path.stat().st_size
            or not bucket.is_whole(there[name], path, file_digest(path), stop)}
        last = {name: missing.pop(name) for name in (CONFIG,) if name in missing}
        for part in (missing, last):
            if part:
                bucket.upload(part, stop)
        return self._address

    def receive(self, address: str, names: list[str], target: Path, stop: threading.Event) -> None:
        """See Destination."""
        self._bucket(address).download({name: target / name for name in names}, stop)

    @staticmethod
    def _bucket(address: str) -> Bucket:
        return bucket_at(address, "the S3 address to publish to")


class Directory(Destination):
    """A new directory."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def send(self, files: dict[str, Path], message: str, stop: threading.Event) -> str:
        """See Destination."""
        if self._path.exists():
            if self._is_there(files):
                return str(self._path)
            raise CannotPublish(f"{str(self._path)!r} exists and has other contents. Give a directory that does not exist.")
        partial = self._path.with_name(f".{self._path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, path in files.items():
            shutil.copyfile(path, partial / name)
        partial.rename(self._path)
        return str(self._path)

    def receive(self, address: str, names: list[str], target: Path, stop: threading.Event) -> None:
        """See Destination."""
        for name in names:
            shutil.copyfile(Path(address) / name, target / name)

    def _is_there(self, files: dict[str, Path]) -> bool:
        found = {path.name for path in self._path.iterdir()} if self._path.is_dir() else set()
        return found == files.keys() and all(
            file_digest(self._path / name) == file_digest(path) for name, path in files.items())


def _is_loaded(name: str) -> bool:
    """Return whether transformers would read a file of the repository that an earlier version left: weights, an end token in
    generation_config.json, a chat template."""
    if "/" in name:
        return name.endswith((".safetensors", ".safetensors.index.json")) or name.startswith("additional_chat_templates/")
    return name.endswith((".safetensors", ".json", ".jinja", ".model"))


def _hub_error(repository: str, error: Exception) -> Exception:
    """Turn a failure on the Hub into an error with a message for users."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, XftError):
        return error
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403, 404):
        return CannotPublish(
            f"The Hub does not allow writing to {repository} ({status}). Set HF_TOKEN, or the Secret block named by "
            "token_block, to a token with write permission there.")
    reason = first_line(error)
    if isinstance(error, HfHubHTTPError) and status is not None and 400 <= status < 500 and status not in (408, 409, 412, 429):
        return CannotPublish(f"The Hub refuses {repository}: {reason}")
    return HubNotReached(f"The Hub did not accept {repository}: {reason}. To send the missing files, start the same run again.")
