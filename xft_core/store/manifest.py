"""The manifest of an artifact: its identity, its inputs, and every file with its digest."""

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
SCHEMA: Final = 2  # version of the manifest format
TIME = "%Y-%m-%dT%H:%M:%SZ"
REBUILD = "Delete the artifact to rebuild it."


class OtherVersion(ArtifactError):
    """An artifact whose manifest was written by another version of this tool."""


def _time(text: str) -> str:
    if time.strftime(TIME, time.strptime(text, TIME)) != text:  # strptime raises ValueError for invalid times
        raise ValueError(f"{text[:40]!r} does not have the expected time format")
    return text


class FileEntry(BaseModel):
    """One file of an artifact: path relative to the artifact, size in bytes, sha256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: Annotated[str, AfterValidator(relative_path)]
    size: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel):
    """The identity and origin of an artifact, and the digests that prove it is complete. ``sha256``: of all other fields."""

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
        """This manifest with its ``sha256``."""
        return self.model_copy(update={"sha256": self._fields_digest()})

    def is_unaltered(self) -> bool:
        """Whether ``sha256`` matches the other fields and ``digest`` matches the files."""
        return self.sha256 == self._fields_digest() and self.digest == files_digest(self.files)

    def _fields_digest(self) -> str:
        # Through JSON text, so that numbers have the same form as after reading the manifest back.
        return digest_of(json.loads(self.model_dump_json(exclude={"sha256"})))


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a published artifact. Raises ArtifactError if it is missing, unreadable or altered."""
    path = directory / MANIFEST
    try:
        return parse_manifest(path.read_bytes(), repr(str(path)))
    except FileNotFoundError:
        raise ArtifactError(f"{str(directory)!r} is not an artifact: it has no {MANIFEST}.") from None
    except OSError as error:
        raise ArtifactError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse the manifest in ``content``. Raises ArtifactError, which names ``where``, if it is unreadable or altered."""
    try:
        manifest = Manifest.model_validate_json(content)
        altered = not manifest.is_unaltered()
    except ValueError as error:  # from pydantic, or from JSON for numbers that it cannot represent
        if other := _other_schema(content):
            raise OtherVersion(
                f"{where} was written by another version of this tool (schema {other}, here {SCHEMA}). {REBUILD}") from None
        raise ArtifactError(f"{where} is damaged: {first_line(error)}. {REBUILD}") from None
    if altered:
        raise ArtifactError(f"{where} was altered: its sha256 does not match its content. {REBUILD}")
    if any(entry.path == MANIFEST for entry in manifest.files):
        raise ArtifactError(f"{where} is damaged: it lists itself as a file. {REBUILD}")
    return manifest


def _other_schema(content: bytes) -> int | None:
    """The schema version of a manifest that seems intact but comes from another version; else None."""
    try:
        fields = parse_json(content)
    except ValueError:
        return None
    found = fields.get("schema_version") if isinstance(fields, dict) and is_artifact_manifest(content) else None
    return found if isinstance(found, int) and found != SCHEMA and 0 < found < 100 else None


def is_artifact(directory: Path) -> bool:
    """Whether a directory is one of our artifacts, intact or damaged: its manifest has our fields, or cannot be read.

    Other tools also write files called manifest.json; a directory with such a file is not ours.
    """
    try:
        return is_artifact_manifest((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def is_artifact_manifest(content: bytes) -> bool:
    """Whether the content of a file called manifest.json belongs to an artifact, even if it cannot be read.

    More than half of our fields are enough, because a damaged manifest may have a corrupted field name.
    """
    try:
        fields = parse_json(content)
    except ValueError:
        return True
    ours = Manifest.model_fields.keys()
    return isinstance(fields, dict) and 2 * len(fields.keys() & ours) > len(ours)


def entries(directory: Path, without: str = "") -> list[FileEntry]:
    """Hash every file below ``directory``, except the one called ``without``."""
    return [
        FileEntry(path=path, size=(directory / path).stat().st_size, sha256=file_digest(directory / path))
        for path in _files(directory) if path != without]


def check_file(directory: Path, entry: FileEntry) -> None:
    """Raise ArtifactError with the reason unless the file below ``directory`` matches ``entry``."""
    path = directory / entry.path
    if not path.is_file():
        raise ArtifactError(f"{str(path)!r} is missing.")
    if path.stat().st_size != entry.size:
        raise ArtifactError(f"{str(path)!r} has {path.stat().st_size} bytes instead of {entry.size}.")
    if file_digest(path) != entry.sha256:
        raise ArtifactError(f"{str(path)!r} was altered: its sha256 is not the recorded one.")


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def files_digest(files: list[FileEntry]) -> str:
    # Curves contain times of day and speeds, which must not make the artifacts of two equal runs differ.
    return digest_of([[entry.path, entry.sha256] for entry in files if entry.path != "metrics.jsonl"])
