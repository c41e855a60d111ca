"""Work in progress, line by line: a kill loses only the last line, and a flipped bit only its own line."""

import random
from pathlib import Path

from xft_core.files.journal import append, read_appended


def test_what_was_appended_is_read_but_for_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_appended(path) == []
    append(path, {"text": "ä"}, {"text": "b"})
    append(path, {"text": "c"})
    with path.open("a") as stream:
        stream.write('{"text": "cut sh')
    rows = [{"text": "ä"}, {"text": "b"}, {"text": "c"}]
    assert read_appended(path) == rows
    append(path, {"text": "d"})
    assert read_appended(path) == [*rows, {"text": "d"}]


def test_a_flipped_bit_costs_the_lines_it_touches_and_never_changes_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"task_id": f"Task/{number}", "text": "é" * number, "number": number / 7} for number in range(8)]
    append(path, *rows)
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 400):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found = read_appended(path)
        assert all(row in rows for row in found) and len(rows) - 2 <= len(found) <= len(rows)
