"""Read JSON Lines files, plain or gzip, with errors that name file and line."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xft_core.errors import DataError
from xft_core.files.parsing import parse_json

LONGEST_LINE, LARGEST_FILE = 200_000_000, 4_000_000_000  # bytes; a compressed file of a few MB can expand to any size


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for every non-blank line of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises DataError, which names file and line, for content that is not a JSON object, not UTF-8 or not gzip.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            unpacked = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number, unpacked = number + 1, unpacked + len(line)
                if len(line) > LONGEST_LINE or unpacked > LARGEST_FILE:
                    raise DataError(
                        f"{str(path)!r}, line {number}: a line exceeds {LONGEST_LINE // 10**6} MB, or the unpacked file "
                        f"exceeds {LARGEST_FILE // 10**9} GB. This is not a benchmark file: fetch it again.")
                if line.strip():
                    yield number, _object(line, where=f"{str(path)!r}, line {number}")
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise DataError(
                f"{str(path)!r} cannot be unpacked after line {number}: {error}. The file is truncated or not gzip: "
                "fetch it again.") from None
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"{str(path)!r} cannot be unpacked after line {number}: {error}. The file is truncated or not gzip: "
            "fetch it again.") from None


def unpacked_digest(path: Path) -> str:
    """sha256 (hex) of a file's content, unpacked if it is gzip."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: this is not JSON ({error.msg} at character {error.pos + 1}). Fix or remove the line.") from None
    except ValueError as error:
        raise DataError(f"{where}: this cannot be read ({error}). Fix or remove the line.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: this is a JSON {type(value).__name__} instead of an object {{...}}. Fix the line.")
    return value
