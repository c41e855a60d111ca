"""Odd real-world rows: some are read, and each refusal names the file, the place and a remedy."""

import gzip
import json
import re
from pathlib import Path

import pytest

from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import run_stage

ROW = {"instruction": "Say a", "response": "a"}
LINE = json.dumps(ROW) + "\n"
ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD: dict[str, tuple[str | bytes, int]] = {  # content, number of rows trained on
    "bom.csv": ("\ufeffinstruction,response\na,b\n", 1), "semicolons.csv": ("instruction;response\na;b\n", 1),
    "no_name.csv": ("instruction,response,\na,b,c\n", 1), "quoted.csv": ('instruction,response\n"a\nb","c ""d"""\n', 1),
    "old_ends.csv": ("instruction,response\ra,b\rc,d\r", 2), "quotes.tsv": ('instruction\tresponse\nsay "hi"\thi\n', 1),
    "one.json": (json.dumps(ROW), 1), "lines.json": (LINE, 1), "array.jsonl": (json.dumps([ROW], indent=1), 1),
    "no_input.jsonl": (lines({"instruction": "a", "input": None, "output": "b"}), 1),
    "trl.jsonl": (lines({"prompt": [ASK], "completion": [ANSWER]}), 1),
    "empty_answer.jsonl": (LINE + lines({"instruction": "x", "response": "  "}), 1)}
BAD: dict[str, tuple[str | bytes, str]] = {  # content, reported place of the mistake
    "texts.json": (json.dumps(["a", "b"]), "row 1"), "comma.jsonl": ('{"instruction": "a", "response": "b",}\n', "line 1"),
    "twice.csv": ("instruction,response,response\na,b,c\n", "header"), "short.csv": ("instruction,response\na\n", "line 2"),
    "unclosed.csv": ('instruction,response\n"a,b\nc,d\n', "line 3"),
    "null.jsonl": (LINE + lines(ROW | {"response": None}), "line 2"),
    "number.jsonl": (LINE + lines(ROW | {"response": 4}), "line 2"),
    "nan.jsonl": ('{"instruction": "a", "response": NaN}\n', "line 1"),
    "list.jsonl": (lines({"question": "x", "answer": ["a"]}), "line 1"), "asks.jsonl": (lines({"messages": [ASK]}), "line 1"),
    "parts.jsonl": (lines({"messages": [ASK | {"content": [{"type": "text", "text": "a"}]}, ANSWER]}), "line 1"),
    "nested.jsonl": (lines({"messages": [[ASK, ANSWER]]}), "line 1"), "utf16.jsonl": (LINE.encode("utf-16"), "UTF-16"),
    "latin1.csv": ("instruction,response\nä,ö\n".encode("latin-1"), "byte 21"), "deep.jsonl": ("[" * 5000 + "\n", "row 1"),
    "half.jsonl": ('{"instruction": "a\\ud800", "response": "b"}\n', "line 1"), "notes.txt": ("hello\n", "line 1"),
    "cut.jsonl.gz": (gzip.compress(LINE.encode() * 200)[:-20], "truncated"), "scalar.jsonl": ("3\n", "line 1"),
    "plain.jsonl.gz": (LINE, "gzip"), "bad.parquet": (b"PAR1xxxx", "Parquet"),
    "mixed.jsonl": (LINE + lines({"messages": [ASK, ANSWER]}), "line 2"),
    "wrapped.json": (json.dumps({"data": [ROW]}), "line 1"),
    "names.csv": ("frage,antwort\na,b\n", "row 1"), "tools.jsonl": (lines({"messages": [ASK, ANSWER], "tools": "x"}), "line 1")}
TO_DO = re.compile(
    r"(Add|Correct|Convert|Fetch|Give|Name|Put|Remove|Save|Write) [^.]|(: (join|fetch) )|; correct or remove|"
    "must be a list of objects")


def prepared(path: Path, content: str | bytes, held_out: Path) -> int:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    data = DataConfig(path=str(path), max_length=256, held_out_path=str(held_out), decontaminate=False)
    found = run_stage(PrepareStage(output=path.with_name(f"{path.name}.out"), data=data)).manifest.metrics
    return int(found["train_rows"])


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    path.write_text(lines({"instruction": "other", "response": "other"}, {"instruction": "third", "response": "third"}))
    return path


@pytest.mark.slow
def test_odd_rows_that_can_be_read_are(tmp_path: Path, held_out: Path) -> None:
    found = {name: prepared(tmp_path / name, content, held_out) for name, (content, _) in GOOD.items()}
    assert found == {name: rows for name, (_, rows) in GOOD.items()}


@pytest.mark.slow
def test_every_refusal_names_file_place_and_what_to_do(tmp_path: Path, held_out: Path) -> None:
    for name, (content, place) in BAD.items():
        with pytest.raises(DataError) as refused:
            prepared(tmp_path / name, content, held_out)
        said = str(refused.value)
        assert name in said and place in said, said
        assert TO_DO.search(said), said
