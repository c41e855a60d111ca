"""Work in progress, with one JSON object per line, each with its own sha256, so that damaged work is detected and redone.

    {"sha256": <of the row's canonical JSON>, "row": {...}}
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from xft_core.files.digests import digest_of
from xft_core.files.parsing import parse_json

logger = logging.getLogger(__name__)


def append(path: Path, *rows: dict[str, Any]) -> None:
    """Append rows to a file. They are on disk when this returns."""
    lines = [json.dumps({"sha256": digest_of(row), "row": row}, ensure_ascii=False) + "\n" for row in rows]
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(lines))
        stream.flush()
        os.fsync(stream.fileno())


def read_appended(path: Path) -> list[dict[str, Any]]:
    """The rows that ``append`` wrote; none if there is no file. A last line that a kill cut short is removed from the file.
    Damaged lines are skipped, with a warning."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[:content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    rows = [_row(line) for line in whole.split(b"\n")[:-1]]
    if damaged := rows.count(None):
        logger.warning("%r: %d damaged lines; their work is done again.", str(path), damaged)
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        content = parse_json(line)
        row = content["row"]
        return row if isinstance(row, dict) and digest_of(row) == content["sha256"] else None
    except (ValueError, KeyError, TypeError):
        return None
