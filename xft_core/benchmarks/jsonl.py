"""JSON lines, plain or gzip, read with errors that name file and line."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xft_core.errors import DataError


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank, of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises DataError, naming file and line, for what is not a JSON object, not UTF-8 or not gzip.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _object(line, where=f"{str(path)!r}, line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{str(path)!r} cannot be unpacked after line {number}: {error}. It is cut short or not gzip: "
            "fetch it again.") from None


def append(path: Path, *rows: dict[str, Any]) -> None:
    """Add lines to a file; they are on disk when this returns."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        stream.flush()
        os.fsync(stream.fileno())


def read_appended(path: Path) -> list[dict[str, Any]]:
    """What ``append`` has left, nothing where there is no file. A last line that a kill cut short is taken off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[:content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def unpacked_digest(path: Path) -> str:
    """sha256 (hex) of a file's content, unpacked where it is gzip."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: this is not JSON ({error.msg} at character {error.pos + 1}). Mend or remove the line.") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{where}: this cannot be read ({error}). Mend or remove the line.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: this is a JSON {type(value).__name__} instead of an object {{...}}. Mend the line.")
    return value
