"""The manifest of an artifact: what it is, what it was made from, and every file with its digest."""

import json
import time
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from xft_core.errors import ArtifactError, first_line
from xft_core.files.digests import digest_of, file_digest
from xft_core.files.disk import relative_path
from xft_core.files.parsing import parse_json

MANIFEST = "manifest.json"
SCHEMA: Final = 2  # of manifests
TIME = "%Y-%m-%dT%H:%M:%SZ"
REBUILD = "Delete the artifact to rebuild it."


class OtherVersion(ArtifactError):
    """An artifact whose manifest is written as another version of this tool writes it."""


def _time(text: str) -> str:
    if time.strftime(TIME, time.strptime(text, TIME)) != text:  # which raises ValueError for what is not a time at all
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
        return self.sha256 == self._fields_digest() and self.digest == files_digest(self.files)

    def _fields_digest(self) -> str:
        # Through JSON text, as it is read back: a number is then written as it was.
        return digest_of(json.loads(self.model_dump_json(exclude={"sha256"})))


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


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def files_digest(files: list[FileEntry]) -> str:
    # Curves hold times of day and speeds: two runs of one recipe are the same artifact anyway.
    return digest_of([[entry.path, entry.sha256] for entry in files if entry.path != "metrics.jsonl"])
