"""Digests: canonical JSON, and sha256 of files and directories. A stage's key is built only from these."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TASK_FILE = "task.yaml"  # a directory that has one is a task's folder (benchmarks/tasks/)

# Files of a model directory: weights, configuration, tokenizer, chat template. Notes and caches do not count.
MODEL_FILE_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def canonical_json(value: Any) -> str:
    """A unique text for a value: sorted keys, no spaces, no NaN. Raises ValueError for values that JSON cannot represent."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in one pass."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def directory_digest(directory: Path, files: Iterable[Path] | None = None) -> str:
    """sha256 over (relative path, sha256) of the files of a directory, by default its model files and named chat templates."""
    chosen = [*model_files(directory), *named_chat_templates(directory)] if files is None else sorted(files)
    return digest_of([[path.relative_to(directory).as_posix(), file_digest(path)] for path in chosen])


def task_files(folder: Path) -> list[Path]:
    """The files of a task's folder, at any depth, sorted, except hidden files and caches."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not any(
            part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts))


def model_files(directory: Path) -> list[Path]:
    """The files of a model directory, sorted: weights, configuration, tokenizer (top level only).

    Includes weights that no reader uses (safetensors_index.weight_files). An unnecessary file in a digest only causes a
    rebuild; a missing one would give a different model the same key.
    """
    return sorted(
        path for path in directory.iterdir()
        if path.is_file() and path.suffix in MODEL_FILE_SUFFIXES and not path.name.startswith((".", "manifest.json"))
    )


def named_chat_templates(directory: Path) -> list[Path]:
    """Chat templates of a model besides the default one (tool_use), sorted. The only model files below a subdirectory."""
    return sorted((directory / "additional_chat_templates").glob("*.jinja"))
