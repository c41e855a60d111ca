"""Text to SQL, graded by execution (Spider's execution accuracy; Yu et al. 2018): the answer's rows against the reference's.

Fields of a row: ``schema``, statements that make and fill the tables; ``query``, the reference; ``ordered`` (optional), whether
the order of the rows counts. Names of columns do not count, their order does; rows count as often as they occur; NULL equals
NULL alone; whole numbers are equal exactly, others within a relative 1e-9; a number never equals a text.
"""

import math
import sqlite3
from collections import Counter
from typing import Any

MAX_ROWS, TOLERANCE = 10_000, 1e-9
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def execute(problem: dict[str, Any], answer: str) -> Any:
    """The rows of the answer's one query."""
    return rows_of(problem["schema"], answer)


def judge(problem: dict[str, Any], output: Any) -> Any:
    """Whether the rows are those of the reference."""
    expected, ordered = rows_of(problem["schema"], problem["query"]), bool(problem.get("ordered", False))
    if same_rows(output, expected, ordered):
        return {"base": True}
    return {"base": False, "detail": f"{len(output)} rows instead of {len(expected)}" if len(output) != len(expected) else (
        f"other rows: {output[:2]} … instead of {expected[:2]} …")}


def rows_of(schema: Any, query: str) -> Any:
    """What a query gives on a new database, as lists of [type, value]."""
    if not query.strip():
        raise ValueError("there is no query")
    database = sqlite3.connect(":memory:")
    database.executescript(schema)
    database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY)
    rows = database.execute(query).fetchmany(MAX_ROWS + 1)
    if len(rows) > MAX_ROWS:
        raise ValueError(f"the query gives more than {MAX_ROWS} rows")
    return [[value.hex() if isinstance(value, bytes) else value for value in row] for row in rows]


def same_rows(found: Any, expected: Any, ordered: bool) -> Any:
    """Whether two results are the same: as lists if ``ordered``, else as bags."""
    if not isinstance(found, list) or len(found) != len(expected) or not all(isinstance(row, list) for row in found):
        return False
    if ordered:
        return all(map(same_row, found, expected))
    left = Counter(map(repr, expected))
    remaining = []
    for row in found:  # most are the same to the last digit; only the others are compared with each other
        if left[repr(row)]:
            left[repr(row)] -= 1
        else:
            remaining.append(row)
    waiting = []
    for row in expected:
        if left[repr(row)]:
            left[repr(row)] -= 1
            waiting.append(row)
    for row in remaining:
        match = next((place for place, other in enumerate(waiting) if same_row(row, other)), None)
        if match is None:
            return False
        del waiting[match]
    return not waiting


def same_row(found: Any, expected: Any) -> Any:
    """Whether two rows are the same, value by value."""
    return len(found) == len(expected) and all(map(same_value, found, expected))


def same_value(found: Any, expected: Any) -> Any:
    """Whether two values are the same."""
    if isinstance(found, int) and isinstance(expected, int):  # a key of ten digits is not the next one
        return found == expected
    if is_number(found) and is_number(expected):
        return found == expected or math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-12)
    return type(found) is type(expected) and found == expected


def is_number(value: Any) -> Any:
    """Whether a value is a number; SQLite has no truth values."""
    return isinstance(value, int | float) and not isinstance(value, bool)
