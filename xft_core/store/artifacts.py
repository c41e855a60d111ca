"""Artifacts: what a stage leaves behind. A directory counts once its manifest is in it, and the manifest comes last.

    <output>.partial/            while the stage works: kept after a kill, so that the next start resumes
        checkpoints/             the stage's own, never published
        metrics.jsonl            curve points, see tracking.py
        output/                  becomes <output> by one rename, after its manifest is written
    <output>.lock                held (flock) by the one process that works on this output
    <output>/manifest.json       stage, key, files with sizes and sha256, parents, metrics, versions, and its own sha256
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
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from xft_core.errors import ArtifactError, DiskFullError
from xft_core.files.digests import MODEL_FILE_SUFFIXES, digest_of, file_digest
from xft_core.files.parsing import parse_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA: Final = 2  # of manifests
TIME = "%Y-%m-%dT%H:%M:%SZ"
REBUILD = "Delete the artifact to rebuild it."
KEY_MARKER = "key"  # first file of a workspace: which work the progress is of
RECORDED_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evalplus", "tokenizers", "safetensors")


class OtherArtifact(ArtifactError):
    """A place that holds the artifact of another key."""


class OtherVersion(ArtifactError):
    """An artifact whose manifest is written as another version of this tool writes it."""


def relative_path(path: str) -> str:
    """``path`` if it is a plain relative path, so that a file stays below its directory and an object below its prefix.

    Raises ValueError otherwise: absolute, ``..``, empty parts, backslashes, control characters, over 900 bytes.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or len(path.encode("utf-8", "replace")) > 900 or not all(
            character.isprintable() and character != "\\" for character in path):
        raise ValueError(f"{path[:100]!r} is no plain relative path")
    return path


def _time(text: str) -> str:
    if time.strftime(TIME, time.strptime(text, TIME)) != text:  # which raises ValueError for what is no time at all
        raise ValueError(f"{text[:40]!r} is not written as times are here")
    return text


class FileEntry(BaseModel):
    """One file of an artifact: path relative to the artifact, size in bytes, sha256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: Annotated[str, AfterValidator(relative_path)]
    size: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """What an artifact is, how it came about, and how to tell that it is whole. ``sha256``: of all the other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[2] = SCHEMA
    sha256: str = ""
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
    created: Annotated[str, AfterValidator(_time)]
    seconds: float

    def sealed(self) -> "Manifest":
        """The same with its ``sha256``."""
        return self.model_copy(update={"sha256": self._fields_digest()})

    def is_unaltered(self) -> bool:
        """Whether ``sha256`` is that of the other fields, ``digest`` that of the files."""
        return self.sha256 == self._fields_digest() and self.digest == _digest(self.files)

    def _fields_digest(self) -> str:
        # Through JSON text, as it is read back: a number is then written as it was.
        return digest_of(json.loads(self.model_dump_json(exclude={"sha256"})))


class Workspace:
    """Where a stage works before it is published: ``checkpoints``, ``metrics_path`` and ``output`` (see above)."""

    def __init__(self, output: Path) -> None:
        self.root = output.absolute().with_name(output.absolute().name + ".partial")
        self.checkpoints = self.root / "checkpoints"
        self.metrics_path = self.root / "metrics.jsonl"
        self.output = self.root / "output"

    def keep_only_progress_of(self, key: str) -> None:
        """Make the directory, and empty it if its progress is that of other work: it must not be resumed.

        Raises ArtifactError when the directory holds something that no stage left.
        """
        marker = self.root / KEY_MARKER
        temporary = marker.with_suffix(".tmp")
        foreign = self.root.is_symlink() or (self.root.exists() and not self.root.is_dir())
        if foreign or (self.root.exists() and not marker.is_file() and set(self.root.iterdir()) - {temporary}):
            raise ArtifactError(
                f"{str(self.root)!r} is where work in progress is kept, and holds something that no stage left there. Nothing "
                "was changed. Choose another output, or move it away.")
        if marker.is_file() and marker.read_bytes() != key.encode():
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        temporary.write_text(key, encoding="utf-8")
        temporary.replace(marker)

    def prepare(self) -> None:
        """Make the directories. Half-written output of an earlier attempt goes, its checkpoints stay."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.checkpoints.mkdir(exist_ok=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a published artifact. Raises ArtifactError when it is missing, unreadable or altered."""
    path = directory / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), repr(str(path)))
    except FileNotFoundError:
        raise ArtifactError(f"{str(directory)!r} is not an artifact: it has no {MANIFEST}.") from None
    except OSError as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest in ``content``. Raises ArtifactError, naming ``where``, for one that is unreadable or altered."""
    try:
        manifest = Manifest.model_validate_json(content)
        altered = not manifest.is_unaltered()
    except ValueError as error:  # pydantic's, and JSON's own for numbers that it cannot hold
        if other := _other_schema(content):
            raise OtherVersion(
                f"{where} was written by another version of this tool (schema {other}, here {SCHEMA}). {REBUILD}") from None
        raise ArtifactError(f"{where} is damaged: {first_line(error)}. {REBUILD}") from None
    if altered:
        raise ArtifactError(f"{where} was altered: its sha256 is not that of its content. {REBUILD}")
    if any(entry.path == MANIFEST for entry in manifest.files):
        raise ArtifactError(f"{where} is damaged: it names itself. {REBUILD}")
    return manifest


def _other_schema(content: bytes) -> int | None:
    """The schema of a manifest that is whole, as far as can be seen, but for being another version's; else None."""
    try:
        fields = parse_json(content)
    except ValueError:
        return None
    found = fields.get("schema_version") if isinstance(fields, dict) and is_artifact_manifest(content) else None
    return found if isinstance(found, int) and found != SCHEMA and 0 < found < 100 else None


def is_artifact(directory: Path) -> bool:
    """Whether a directory was published here, whole or damaged: its manifest has our fields, or cannot be read.

    Other tools call their files manifest.json too; what holds such a one is not ours.
    """
    try:
        return is_artifact_manifest((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_artifact_manifest(content: bytes) -> bool:
    """Whether the content of a file called manifest.json is that of an artifact, also one that cannot be read.

    Half of our fields are enough: in a damaged one a name may be spoiled.
    """
    try:
        fields = parse_json(content)
    except ValueError:
        return True
    ours = Manifest.model_fields.keys()
    return isinstance(fields, dict) and 2 * len(fields.keys() & ours) > len(ours)


def verify(directory: Path) -> Manifest:
    """Check every file of an artifact by size and sha256, and that there is none besides that a reader could take for
    part of it (a note or a hidden file does no harm).

    Raises ArtifactError naming the first file that is gone, altered or foreign.
    """
    manifest = read_manifest(directory)
    expected = {MANIFEST, *(entry.path for entry in manifest.files)}
    for name in _files(directory):
        if name not in expected and name.endswith((*MODEL_FILE_SUFFIXES, ".jsonl")) and not name.startswith("."):
            raise ArtifactError(f"{str(directory / name)!r} is not part of the artifact. Remove it.")
    for entry in manifest.files:
        check_file(directory, entry)
    return manifest


def entries(directory: Path, without: str = "") -> list[FileEntry]:
    """Every file below ``directory``, hashed, but for the one called ``without``."""
    return [
        FileEntry(path=path, size=(directory / path).stat().st_size, sha256=file_digest(directory / path))
        for path in _files(directory) if path != without]


def check_file(directory: Path, entry: FileEntry) -> None:
    """Raise ArtifactError, saying what is wrong, unless the file below ``directory`` is what ``entry`` says."""
    path = directory / entry.path
    if not path.is_file():
        raise ArtifactError(f"{str(path)!r} is gone.")
    if path.stat().st_size != entry.size:
        raise ArtifactError(f"{str(path)!r} has {path.stat().st_size} bytes instead of {entry.size}.")
    if file_digest(path) != entry.sha256:
        raise ArtifactError(f"{str(path)!r} was altered: its sha256 is not the one that was noted.")


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
        logger.warning("%s It is rebuilt; what was there is kept as %s.", without_advice(error), damaged.name)
        return None


def without_advice(error: ArtifactError) -> str:
    """What is wrong, for where the artifact is rebuilt without anyone's help."""
    return str(error).removesuffix(f" {REBUILD}")


def _free_name(directory: Path, suffix: str) -> Path:
    """``<name>.<suffix>``, or that with a number where it is taken."""
    candidates = (directory.with_name(f"{directory.name}.{suffix}{number or ''}") for number in itertools.count())
    return next(path for path in candidates if not path.exists())


def check_output_is_free(directory: Path) -> None:
    """Raise ArtifactError if ``directory`` exists and is anything but an empty directory."""
    if directory.is_symlink() or (directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))):
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
    files = entries(workspace.output, without=MANIFEST)
    manifest = Manifest(
        stage=stage, stage_version=stage_version, key=key, digest=_digest(files), files=files, parents=parents,
        config=config, metrics=metrics, versions=_versions(), provenance=provenance,
        created=time.strftime(TIME, time.gmtime()), seconds=round(seconds, 3),
    ).sealed()
    for entry in files:
        _sync(workspace.output / entry.path)
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
        stream = directory.with_name(directory.name + ".lock").open("a")  # not "w": a file of that name may be someone's
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or no name at all
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{str(directory)[:200]!r} cannot be written: {reason}. Choose another output.") from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_full_is_an_error(where: Path) -> Iterator[None]:
    """Turn 'no space left', in whatever form a library raises it, into a DiskFullError that names the place."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _means_disk_full(error):
            raise
        raise DiskFullError(
            f"No space left while writing to {str(where)!r}. Nothing that was finished is lost: free some space and "
            "start the same command again, it goes on from the last checkpoint."
        ) from error


def _means_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "os error 28" in str(error)  # safetensors gives the system's text


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def first_line(error: Exception) -> str:
    """What a person needs of an error: of pydantic's, the field and the message."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")[:300]
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


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
