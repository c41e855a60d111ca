import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from xft_core.benchmarks.evalplus.benchmark import EvalPlus
from xft_core.errors import DataError

ROW: dict[str, Any] = {
    "task_id": "Own/0", "prompt": "def f(x):\n", "entry_point": "f", "canonical_solution": "    return x\n",
    "base_input": [[1]], "plus_input": [[2], [3]], "atol": 0, "contract": "", "another": "ignored"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_plain_and_gzip_give_the_same_problems_in_order(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"task_id": "Own/1", "atol": 1e-6}]
    plain = write(tmp_path / "a.jsonl", rows[0], "", rows[1])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    problems = EvalPlus().load_problems(plain)
    assert [problem.task_id for problem in problems] == ["Own/0", "Own/1"]
    assert problems[1].atol == 1e-6 and problems[0].plus_input == [[2], [3]]
    assert EvalPlus().load_problems(packed) == problems
    assert EvalPlus().load_problems(plain, max_problems=1) == problems[:1]


def test_fields_that_may_be_left_out(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name not in ("atol", "contract", "another")}
    assert EvalPlus().load_problems(write(tmp_path / "a.jsonl", row | {"plus_input": {}}))[0].plus_input == []


@pytest.mark.parametrize(("line", "reason"), [
    ('{"task_id": "Own/1", ', "not JSON"),
    ('["a"]', "instead of an object"),
    ("\udcff", "cannot be read"),
    ({name: value for name, value in ROW.items() if name != "entry_point"}, "'entry_point' is missing"),
    ({name: value for name, value in ROW.items() if name != "plus_input"}, "'plus_input' is missing"),
    (ROW, "already used in line 1"),
    (ROW | {"task_id": ""}, "task_id"),
    (ROW | {"task_id": 3}, "task_id"),
    (ROW | {"task_id": "Own/1", "entry_point": "f()"}, "entry_point"),
    (ROW | {"task_id": "Own/1", "base_input": []}, "base_input is empty"),
    (ROW | {"task_id": "Own/1", "base_input": [1, 2]}, "argument lists"),
    (ROW | {"task_id": "Own/1", "plus_input": "x"}, "argument lists"),
    (ROW | {"task_id": "Own/1", "atol": "tight"}, "atol"),
    (ROW | {"task_id": "Own/1", "atol": float("nan")}, "atol"),
])
def test_a_bad_line_is_named(tmp_path: Path, line: Any, reason: str) -> None:
    path = tmp_path / "broken.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes((json.dumps(ROW) + "\n" + text).encode(errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        EvalPlus().load_problems(path, max_problems=1)
    assert reason in str(caught.value)
    assert "broken.jsonl', line 2" in str(caught.value)


def test_files_without_problems(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", "")
    with pytest.raises(DataError, match="has no problems"):
        EvalPlus().load_problems(empty)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode())[:-12])
    with pytest.raises(DataError, match="fetch it again"):
        EvalPlus().load_problems(cut)
    cut.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="fetch it again"):
        EvalPlus().load_problems(cut)
