"""Artifacts: what a stage leaves behind. A directory counts once its manifest is in it, and the manifest comes last.

    <output>.partial/            while the stage works: kept after a kill, so that the next start resumes
        checkpoints/             the stage's own, never published
        metrics.jsonl            curve points, see tracking.py
        output/                  becomes <output> by one rename, after its manifest is written
    <output>.lock                held (flock) by the one process that works on this output
    <output>/manifest.json       stage, key, files with sizes and sha256, parents, metrics, versions
"""

import errno
import fcntl
import itertools
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from xft_core.errors import ArtifactError, DiskFullError
from xft_core.fingerprint import MODEL_FILE_SUFFIXES, digest_of, file_digest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RECORDED_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evalplus", "tokenizers", "safetensors")


class OtherArtifact(ArtifactError):
    """A place that holds the artifact of another key."""


class FileEntry(BaseModel):
    """One file of an artifact: path relative to the artifact, size in bytes, sha256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, how it came about, and how to tell that it is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    stage: str
    stage_version: int
    key: str
    digest: str
    files: list[FileEntry]
    parents: dict[str, str]
    config: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]
    provenance: dict[str, str]
    created: str
    seconds: float


class Workspace:
    """Where a stage works before it is published: ``checkpoints``, ``metrics_path`` and ``output`` (see above)."""

    def __init__(self, output: Path) -> None:
        self.root = output.absolute().with_name(output.absolute().name + ".partial")
        self.checkpoints = self.root / "checkpoints"
        self.metrics_path = self.root / "metrics.jsonl"
        self.output = self.root / "output"

    def prepare(self) -> None:
        """Make the directories. Half-written output of an earlier attempt goes, its checkpoints stay."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.checkpoints.mkdir(exist_ok=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a published artifact. Raises ArtifactError when it is missing or unreadable."""
    path = directory / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{str(directory)!r} is not an artifact: it has no {MANIFEST}.") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{str(path)!r} is damaged: {str(error).splitlines()[0]}. Delete it to rebuild.") from None


def is_artifact(directory: Path) -> bool:
    """Whether a directory was published here, whole or damaged: its manifest names a stage and a key, or cannot be read.

    Other tools call their files manifest.json too; what holds such a one is not ours.
    """
    try:
        return is_artifact_manifest((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_artifact_manifest(content: bytes) -> bool:
    """Whether the content of a file called manifest.json is that of an artifact, also one that cannot be read."""
    try:
        fields = json.loads(content)
    except ValueError:
        return True
    return isinstance(fields, dict) and {"stage", "key", "digest"} <= fields.keys()


def verify(directory: Path) -> Manifest:
    """Check every file of an artifact by size and sha256, and that there is none besides that a reader could take for
    part of it (a note or a hidden file does no harm).

    Raises ArtifactError naming the first file that is gone, altered or foreign.
    """
    manifest = read_manifest(directory)
    if manifest.digest != _digest(manifest.files):
        raise ArtifactError(f"The manifest of {str(directory)!r} was altered: its digest does not match its files.")
    expected = {entry.path: entry for entry in manifest.files}
    for name in _files(directory):
        if name not in expected and name.endswith((*MODEL_FILE_SUFFIXES, ".jsonl")) and not name.startswith("."):
            raise ArtifactError(f"{str(directory / name)!r} is not part of the artifact. Remove it.")
    for entry in manifest.files:
        path = directory / entry.path
        if not path.is_file():
            raise ArtifactError(f"{str(path)!r} is gone.")
        if path.stat().st_size != entry.size:
            raise ArtifactError(f"{str(path)!r} has {path.stat().st_size} bytes instead of {entry.size}.")
        if file_digest(path) != entry.sha256:
            raise ArtifactError(f"{str(path)!r} was altered: its sha256 is not the manifest's.")
    return manifest


def find(directory: Path, key: str) -> Manifest | None:
    """The verified manifest of ``directory`` if it holds the artifact of this key, else None.

    A damaged artifact is set aside (``<name>.damaged``), so that it can be rebuilt and looked at. Raises ArtifactError
    when the directory holds the artifact of another key.
    """
    if not is_artifact(directory):
        return None
    try:
        manifest = read_manifest(directory)
        if manifest.key != key:
            raise OtherArtifact(
                f"{str(directory)!r} already holds another artifact (stage {manifest.stage}, key {manifest.key[:12]}). "
                "Choose another output or delete it.")
        return verify(directory)
    except OtherArtifact:
        raise
    except ArtifactError as error:
        damaged = _free_name(directory, "damaged")
        directory.rename(damaged)
        logger.warning("%s It is rebuilt; the damaged copy is %s.", error, damaged.name)
        return None


def _free_name(directory: Path, suffix: str) -> Path:
    """``<name>.<suffix>``, or that with a number where it is taken."""
    candidates = (directory.with_name(f"{directory.name}.{suffix}{number or ''}") for number in itertools.count())
    return next(path for path in candidates if not path.exists())


def check_output_is_free(directory: Path) -> None:
    """Raise ArtifactError if ``directory`` exists and holds anything."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise ArtifactError(
            f"Output {str(directory)!r} already holds something that is not an artifact of this stage. "
            "Nothing was changed. Choose another output or empty it."
        )


def publish(
    workspace: Workspace, directory: Path, *, stage: str, stage_version: int, key: str, parents: dict[str, str],
    config: dict[str, Any], metrics: dict[str, Any], provenance: dict[str, str], seconds: float,
) -> Manifest:
    """Hash what the stage wrote, put the manifest beside it, and move it to ``directory`` in one rename."""
    if workspace.metrics_path.is_file():
        shutil.copyfile(workspace.metrics_path, workspace.output / workspace.metrics_path.name)
    files = [
        FileEntry(path=path, size=(workspace.output / path).stat().st_size, sha256=file_digest(workspace.output / path))
        for path in _files(workspace.output)
    ]
    manifest = Manifest(
        stage=stage, stage_version=stage_version, key=key, digest=_digest(files), files=files, parents=parents,
        config=config, metrics=metrics, versions=_versions(), provenance=provenance,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), seconds=round(seconds, 3),
    )
    for path in _files(workspace.output):
        _sync(workspace.output / path)
    manifest_path = workspace.output / MANIFEST
    manifest_path.write_text(json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False), encoding="utf-8")
    _sync(manifest_path)
    check_output_is_free(directory)
    if directory.is_dir():
        directory.rmdir()
    workspace.output.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(workspace.root, ignore_errors=True)
    return manifest


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the only right to work on ``directory``. Waits for another owner; a killed owner loses it at once."""
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stream = directory.with_name(directory.name + ".lock").open("w")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArtifactError(f"{str(directory)!r} cannot be written: {error.strerror}. Choose another output.") from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_full_is_an_error(where: Path) -> Iterator[None]:
    """Turn 'no space left', in whatever form a library raises it, into a DiskFullError that names the place."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _means_disk_full(error, where):
            raise
        raise DiskFullError(
            f"No space left while writing to {str(where)!r}. Nothing that was finished is lost: free some space and "
            "start the same command again, it goes on from the last checkpoint."
        ) from error


def _means_disk_full(error: BaseException, where: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors gives the system's text; torch.save only says that its archive is not as long as it should be.
    return "os error 28" in str(error) or ("inline_container" in str(error) and shutil.disk_usage(where.parent).free < 2**20)


def _files(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*") if path.is_file() and path.relative_to(directory).as_posix() != MANIFEST
    )


def _digest(files: list[FileEntry]) -> str:
    # Curves hold times of day and speeds: two runs of one recipe are the same artifact all the same.
    return digest_of([[entry.path, entry.sha256] for entry in files if entry.path != "metrics.jsonl"])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
