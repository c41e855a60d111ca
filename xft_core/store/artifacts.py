"""Artifacts: the published outputs of stages. A directory is an artifact once it has a manifest, which is written last.

    <output>.partial/            while the stage runs; kept after a kill, so that the next start resumes
        checkpoints/             the stage's own, never published
        metrics.jsonl            curve points, see tracking.py
        output/                  renamed to <output> after its manifest is written
    <output>.lock                held (flock) by the only process that works on this output
    <output>/manifest.json       stage, key, files with sizes and sha256, parents, metrics, versions, and its own sha256
"""

import itertools
import json
import logging
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xft_core.errors import ArtifactError
from xft_core.files.digests import MODEL_FILE_SUFFIXES, TASK_FILE, directory_digest, file_digest, task_files
from xft_core.files.disk import sync
from xft_core.store.manifest import (
    MANIFEST,
    REBUILD,
    TIME,
    Manifest,
    _files,
    check_file,
    entries,
    files_digest,
    is_artifact,
    read_manifest,
)
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

RECORDED_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evalplus", "tokenizers", "safetensors")


class OtherArtifact(ArtifactError):
    """A directory that contains the artifact of another key."""


def verify(directory: Path) -> Manifest:
    """Check every file of an artifact by size and sha256, and check that there is no additional file that a reader could
    mistake for part of it (a note or a hidden file is harmless).

    Raises ArtifactError, which names the first file that is missing, altered or foreign.
    """
    manifest = read_manifest(directory)
    expected = {MANIFEST, *(entry.path for entry in manifest.files)}
    for name in _files(directory):
        if name not in expected and name.endswith((*MODEL_FILE_SUFFIXES, ".jsonl")) and not name.startswith("."):
            raise ArtifactError(f"{str(directory / name)!r} is not part of the artifact. Remove it.")
    for entry in manifest.files:
        check_file(directory, entry)
    return manifest


def find(directory: Path, key: str) -> Manifest | None:
    """The verified manifest of ``directory`` if it contains the artifact of this key, else None.

    A damaged artifact is renamed (``<name>.damaged``), so that it can be rebuilt and inspected. Raises OtherArtifact if the
    directory contains the artifact of another key.
    """
    if not is_artifact(directory):
        return None
    try:
        manifest = read_manifest(directory)
        if manifest.key != key:
            raise OtherArtifact(
                f"{str(directory)!r} already contains another artifact (stage {manifest.stage}, key {manifest.key[:12]}). "
                "Choose another output or delete the artifact.")
        return verify(directory)
    except OtherArtifact:
        raise
    except ArtifactError as error:
        damaged = _free_name(directory, "damaged")
        directory.rename(damaged)
        logger.warning("%s It will be rebuilt; the damaged copy is kept as %s.", without_advice(error), damaged.name)
        return None


def without_advice(error: ArtifactError) -> str:
    """The error message without its advice, for artifacts that are rebuilt automatically."""
    return str(error).removesuffix(f" {REBUILD}")


def _free_name(directory: Path, suffix: str) -> Path:
    """``<name>.<suffix>``, with a number appended if it is taken."""
    candidates = (directory.with_name(f"{directory.name}.{suffix}{number or ''}") for number in itertools.count())
    return next(path for path in candidates if not path.exists())


def check_output_is_free(directory: Path) -> None:
    """Raise ArtifactError if ``directory`` exists and is anything but an empty directory."""
    if directory.is_symlink() or (directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))):
        raise ArtifactError(
            f"Output {str(directory)!r} already contains something other than an artifact of this stage. "
            "Nothing was changed. Choose another output or empty this one."
        )


def publish(
    workspace: Workspace, directory: Path, *, stage: str, stage_version: int, key: str, parents: dict[str, str],
    config: dict[str, Any], metrics: dict[str, Any], provenance: dict[str, str], seconds: float,
) -> Manifest:
    """Hash the stage's output, add the manifest, and move both to ``directory`` in one rename."""
    if workspace.metrics_path.is_file():
        shutil.copyfile(workspace.metrics_path, workspace.output / workspace.metrics_path.name)
    files = entries(workspace.output, without=MANIFEST)
    manifest = Manifest(
        stage=stage, stage_version=stage_version, key=key, digest=files_digest(files), files=files, parents=parents,
        config=config, metrics=metrics, versions=_versions(), provenance=provenance,
        created=time.strftime(TIME, time.gmtime()), seconds=round(seconds, 3),
    ).sealed()
    for entry in files:
        sync(workspace.output / entry.path)
    manifest_path = workspace.output / MANIFEST
    manifest_path.write_text(json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False), encoding="utf-8")
    sync(manifest_path)
    check_output_is_free(directory)
    if directory.is_dir():
        directory.rmdir()
    workspace.output.rename(directory)
    sync(directory.parent)
    shutil.rmtree(workspace.root, ignore_errors=True)
    return manifest


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def input_digest(path: Path) -> str:
    """Digest of a stage's input: an artifact (its own digest, after its files are verified), a model directory, a task's
    folder, or a single file.

    Raises ArtifactError if there is nothing to digest, or an artifact is damaged.
    """
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long, a directory that may not be entered
        raise ArtifactError(f"Input {str(path)[:200]!r} cannot be used as a path: {error.strerror}.") from None
    if is_file:
        return file_digest(path)
    if is_directory:
        from xft_core.store.artifacts import verify
        from xft_core.store.manifest import is_artifact

        if is_artifact(path):
            return verify(path).digest
        return directory_digest(path, task_files(path) if (path / TASK_FILE).is_file() else None)
    raise ArtifactError(f"Input {str(path)[:200]!r} does not exist. Give an existing file, model directory or artifact.")
