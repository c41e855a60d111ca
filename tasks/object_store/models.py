"""Models at an S3 address. Each is fetched once into XFT_HOME and is then an ordinary directory.

    s3://bucket/prefix                                        a model directory: its files directly below the prefix
    s3://bucket/prefix/artifacts/<stage>/<key>                an artifact that a run delivered (docs/reference/files.md)
    <XFT_HOME>/models/<digest of what is at the address>/     where it is fetched to, with the sha256 of every file

Only the file types of a model are fetched: safetensors, JSON, tokenizer. No code, no pickles.
Uses neither Prefect nor MLflow.
"""

import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from tasks.object_store import artifacts, file_sets
from tasks.object_store.bucket import Bucket, StoredObject, StoreUnavailable, bucket_at
from tasks.prefect_log import Logger
from tasks.settings import S3_ADDRESS, settings
from xft_core.errors import ArtifactError, CheckpointError
from xft_core.files.digests import MODEL_FILE_SUFFIXES, digest_of
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.runtime import quantities
from xft_core.store import checkpoints
from xft_core.store.artifacts import find
from xft_core.store.manifest import MANIFEST, Manifest, is_artifact_manifest

SCHEME = "s3://"
NAME_LENGTH = 32  # hexadecimal digits of the digest that names a directory


def is_address(name: str) -> bool:
    """Return whether a model's name is an S3 address."""
    return name.startswith(SCHEME)


@dataclass(frozen=True)
class _Offer:
    """What is at an address: a model's listed files, or an artifact's manifest (and its text)."""

    files: dict[str, StoredObject]
    manifest: Manifest | None = None
    text: bytes = b""

    @property
    def name(self) -> str:
        listed = sorted((name, item.size, item.etag) for name, item in self.files.items())
        return digest_of(self.text.decode() if self.manifest else listed)[:NAME_LENGTH]


def check(address: str) -> None:
    """Check that there is a model at the address, without fetching it. Raises as ``fetch``."""
    _offer(_bucket(address))


def fetch(address: str, stop: threading.Event, logger: Logger) -> Path:
    """Return the local directory of the model at the address. It is fetched unless it is here and unchanged there.

    Raises CheckpointError if there is no model, or an unusable one; StoreRefused, StoreUnavailable, RunStopped.
    """
    bucket = _bucket(address)
    offer = _offer(bucket)
    directory = settings().models / offer.name
    with locked(directory), disk_full_is_an_error(directory):
        if not _is_here(directory, offer, logger):
            with file_sets.beside(directory) as arriving:
                _receive(bucket, offer, arriving, stop)
                arriving.rename(directory)
            size = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
            logger.info("Fetched %s, %s, to %s", address, quantities.size(size), directory)
        os.utime(directory)  # gc counts from the last use
    return directory


def _bucket(address: str) -> Bucket:
    if not S3_ADDRESS.fullmatch(address):
        shown = "" if "@" in address else f" ({address[:200]!r})"  # it may contain a password
        raise CheckpointError(
            f"model.path{shown} is not s3://bucket/prefix: letters, digits and ._=- in the prefix, no credentials. "
            "Those belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in AWS_PROFILE.")
    return bucket_at(address.rstrip("/"), "model.path")


def _offer(bucket: Bucket) -> _Offer:
    content = bucket.get(MANIFEST)
    if content is not None and is_artifact_manifest(content):
        manifest = artifacts.checked_manifest(content, bucket.address)
        names = [entry.path for entry in manifest.files]
        if strange := [name for name in names if not name.endswith((*MODEL_FILE_SUFFIXES, ".jsonl"))]:
            raise CheckpointError(f"The artifact at {bucket.address} contains {strange[0]!r}, which is not part of a model.")
        _check_is_model(names, bucket)
        return _Offer({}, manifest, content)
    there = {item.name: item for item in bucket.objects("") if "/" not in item.name}
    files = {
        name: item for name, item in there.items()
        if name.endswith(MODEL_FILE_SUFFIXES) and not name.startswith((".", MANIFEST))}
    _check_is_model(list(there), bucket)
    return _Offer(files)


def _check_is_model(names: list[str], bucket: Bucket) -> None:
    if not names:
        raise CheckpointError(f"There is no model at {bucket.address}: no object is directly below it.")
    if "config.json" not in names:
        raise CheckpointError(
            f"There is no model at {bucket.address}: no config.json among {', '.join(sorted(names)[:5])}. Give the address "
            "of the model directory itself, or of an artifact (upcycle, sft or merge).")
    if not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            f"The model at {bucket.address} has no .safetensors file. Other weight formats can contain code and are not "
            "fetched: save the model with save_pretrained first.")


def _is_here(directory: Path, offer: _Offer, logger: Logger) -> bool:
    if offer.manifest is not None:
        return find(directory, offer.manifest.key) is not None
    if directory.is_dir():
        try:
            checkpoints.check(directory)
            return True
        except ArtifactError as error:
            logger.warning("%s The model is fetched again.", error)
            shutil.rmtree(directory)
    return False


def _receive(bucket: Bucket, offer: _Offer, directory: Path, stop: threading.Event) -> None:
    if offer.manifest is not None:
        file_sets.receive_from(bucket, file_sets.content_name(offer.manifest.files), offer.manifest.files, directory, stop)
        (directory / MANIFEST).write_bytes(offer.text)
        return
    bucket.download({name: directory / name for name in offer.files}, stop)
    arrived = {path.name: path.stat().st_size for path in directory.iterdir()}
    if _offer(bucket).name != offer.name or arrived != {name: item.size for name, item in offer.files.items()}:
        raise StoreUnavailable(f"{bucket.address} changed while it was fetched, or did not give all of it. Try again.")
    for entry in checkpoints.seal(directory):
        if not bucket.is_whole(offer.files[entry.path], directory / entry.path, entry.sha256, stop):
            raise StoreUnavailable(f"{bucket.address}/{entry.path} was altered in transit. Try again.")
