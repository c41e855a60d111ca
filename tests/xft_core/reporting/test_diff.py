"""``python -m xft_core diff A B``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xft_core.errors import ArtifactError, DataError
from xft_core.reporting.diff import diff


def results(path: Path, verdicts: str, sha256: str = "5" * 64, **facts: Any) -> Path:
    """Write a results.json from one letter per problem: b: passes only the base tests, p: all, f: none, i: not graded."""
    status = {"p": ("pass", "pass"), "b": ("pass", "fail"), "f": ("fail", "fail"), "i": ("infrastructure_error",) * 2}
    path.write_text(json.dumps({
        "benchmark": {"file": "own.jsonl", "sha256": sha256, "extended_tests": True}, **facts,
        "problems": [
            {"task_id": f"Own/{index}", "samples": [
                {"base": status[letter][0], "plus": status[letter][1], "detail": "", "solution": "pass"}]}
            for index, letter in enumerate(verdicts)]}))
    return path


def test_table_test_and_lists(tmp_path: Path) -> None:
    first, second = results(tmp_path / "a.json", "ppppppppfbi"), results(tmp_path / "b.json", "pfffffffpbp")
    text = diff(first, second, tmp_path / "page.html")
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()
            if line.startswith("| b")}
    assert rows["base and extended tests"][2:] == ["+60.0", "7", "1", "1", "1", "0.07"]
    assert rows["base tests"][2:] == ["+60.0", "7", "1", "2", "0", "0.07"]
    assert "10 problems in both" in text and "McNemar's exact test" in text and "only a hint" in text
    assert "Solved only by A (7): Own/1, Own/2, Own/3, Own/4, Own/5, Own/6, Own/7" in text
    assert "Solved only by B (1): Own/8" in text
    assert "Own/8" in (tmp_path / "page.html").read_text()
    assert "Graded under different conditions" not in text


def test_other_conditions_are_said(tmp_path: Path) -> None:
    text = diff(results(tmp_path / "a.json", "pf", cpu="slow"), results(tmp_path / "b.json", "pf", cpu="fast"))
    assert "Graded under different conditions: cpu is slow for A, fast for B." in text


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    first = results(tmp_path / "a.json", "pf")
    with pytest.raises(DataError, match="different benchmarks"):
        diff(first, results(tmp_path / "b.json", "pf", sha256="6" * 64))
    with pytest.raises(DataError, match="no graded problem in common"):
        diff(first, results(tmp_path / "b.json", "ii"))
    with pytest.raises(ArtifactError, match="no evaluation"):
        diff(first, tmp_path / "absent")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is not the results"):
        diff(first, tmp_path / "list.json")


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xft_core", "diff", str(results(tmp_path / "a.json", "pf"))]
    done = subprocess.run([*command, str(results(tmp_path / "b.json", "ff"))], capture_output=True, text=True)
    assert done.returncode == 0 and "Solved only by A (1): Own/0" in done.stdout
    done = subprocess.run([*command, str(tmp_path / "absent")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
