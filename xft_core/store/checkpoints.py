"""Checkpoints that are valid only if complete, byte for byte: the last file written into one lists its contents.

    checkpoint-<step>/          the state to resume from after that step
    checkpoint-<step>/whole     the other files with sizes and sha256, and the sha256 of that list

The checksums cost one read of the files when they are written, and one when a start resumes from them
(docs/measurements/reliability.md has figures). A checkpoint that fails the check is removed, and the one before it is used.
"""

import json
import logging
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from xft_core.errors import ArtifactError
from xft_core.files.digests import digest_of
from xft_core.files.disk import write_whole
from xft_core.store.manifest import FileEntry, check_file, entries

logger = logging.getLogger(__name__)

SEAL = "whole"
PREFIX = "checkpoint-"


class Seal(BaseModel):
    """The files of a directory, and the sha256 of their list."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: list[FileEntry]
    sha256: str


def seal(directory: Path) -> list[FileEntry]:
    """Record every file of ``directory`` in its seal, which marks it as complete. Returns the entries."""
    noted = entries(directory, without=SEAL)
    files = [entry.model_dump() for entry in noted]
    write_whole(directory / SEAL, json.dumps({"files": files, "sha256": digest_of(files)}))
    return noted


def check(directory: Path) -> None:
    """Raise ArtifactError with the reason unless every file matches the seal and there are no other files."""
    try:
        found = Seal.model_validate_json((directory / SEAL).read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{str(directory)!r} was not written completely.") from None
    except (ValidationError, OSError):
        raise ArtifactError(f"{str(directory / SEAL)!r} is damaged.") from None
    if found.sha256 != digest_of([entry.model_dump() for entry in found.files]):
        raise ArtifactError(f"{str(directory / SEAL)!r} was altered.")
    for entry in found.files:
        check_file(directory, entry)
    noted = {entry.path for entry in found.files} | {SEAL}
    foreign = [path for path in directory.rglob("*") if path.is_file() and path.relative_to(directory).as_posix() not in noted]
    if foreign:
        raise ArtifactError(f"{str(foreign[0])!r} is not part of the checkpoint.")


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written; -1 for a directory with any other name."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else -1


def newest_whole(directory: Path) -> Path | None:
    """The newest complete checkpoint in ``directory``. Newer ones that are incomplete are removed, with a warning."""
    for path in sorted(directory.glob(f"{PREFIX}*"), key=step_of, reverse=True):
        try:
            if step_of(path) < 0:
                raise ArtifactError(f"{str(path)!r} is not a checkpoint.")
            check(path)
            return path
        except ArtifactError as error:
            logger.warning("%s It is not used to resume.", error)
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path)
    return None


def keep_newest(directory: Path, count: int) -> None:
    """Remove all but the newest ``count`` checkpoints."""
    for path in sorted(directory.glob(f"{PREFIX}*"), key=step_of, reverse=True)[count:]:
        shutil.rmtree(path)
