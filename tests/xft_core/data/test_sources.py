"""Real-world rows: good and bad ones in every kind of file and form become conversations, or a message that names the place."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import ipc, parquet

from xft_core.data.conversation import PLAIN_TEXT, beside
from xft_core.data.reading import conversations_of, read_conversations
from xft_core.errors import DataError
from xft_core.files.data_files import find_data_files
from xft_core.recipe.sections import DataConfig

QA = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(3)]
EXPECTED = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in QA]
LINES = "".join(json.dumps(row) + "\n" for row in QA)
CSV = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in QA)
ASKED = {"role": "user", "content": "a"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "b"}
CHAT = [ASKED, ANSWER]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def read(path: Path, **changes: Any) -> list[list[dict[str, Any]]]:
    config = DataConfig(path=str(path), **changes)
    return list(read_conversations(config, find_data_files(config.path, config.split)))


def zstd(path: Path, content: bytes) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


def arrow(path: Path, new: Callable[..., Any], batches: int = 1) -> None:
    table = pyarrow.Table.from_pylist(QA)
    with pyarrow.OSFile(str(path), "wb") as stream, new(stream, table.schema) as writer:
        for _ in range(batches):
            writer.write_table(table)


GOOD_FILES: dict[str, Callable[[Path], object]] = {
    "d.jsonl": lambda path: path.write_text(LINES),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.encode()),
    "crlf.jsonl": lambda path: path.write_bytes(LINES.replace("\n", "\r\n").encode()),
    "blank.jsonl": lambda path: path.write_text("\n" + LINES.replace("\n", "\n\n")),
    "d.json": lambda path: path.write_text(json.dumps(QA, indent=1)),
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "members.jsonl.gz": lambda path: path.write_bytes(
        b"".join(gzip.compress(f"{line}\n".encode()) for line in LINES.split("\n"))),
    "d.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(QA).encode())),
    "d.jsonl.zst": lambda path: zstd(path, LINES.encode()),
    "array.json.zst": lambda path: zstd(path, b"\xef\xbb\xbf \n" + json.dumps(QA).encode()),
    "d.csv": lambda path: path.write_text(CSV),
    "bom.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + CSV.encode()),
    "crlf.csv": lambda path: path.write_bytes(CSV.replace("\n", "\r\n").encode()),
    "semicolon.csv": lambda path: path.write_text(CSV.replace(",", ";")),
    "blank.csv": lambda path: path.write_text(CSV.replace("\n", "\n\n")),
    "D.CSV": lambda path: path.write_text(CSV),
    "D.JSONL.GZ": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "d.csv.gz": lambda path: path.write_bytes(gzip.compress(CSV.encode())),
    "d.tsv": lambda path: path.write_text(CSV.replace(",", "\t")),
    "d.tsv.zst": lambda path: zstd(path, CSV.replace(",", "\t").encode()),
    "d.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist(QA), path),
    "stream.arrow": lambda path: arrow(path, ipc.new_stream),
    "file.arrow": lambda path: arrow(path, ipc.new_file),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_files_of_every_kind_give_the_same_rows(name: str, tmp_path: Path) -> None:
    GOOD_FILES[name](tmp_path / name)
    assert read(tmp_path / name) == EXPECTED


GOOD_ROWS: list[tuple[dict[str, Any], list[tuple[str, str]], dict[str, Any]]] = [
    ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")], {}),
    ({"prompt": "a", "completion": "b", "system": "s"}, [("system", "s"), ("user", "a"), ("assistant", "b")], {}),
    ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
     [("user", "a"), ("assistant", "b")], {}),
    ({"question": "a", "answer": "b", "id": 7}, [("user", "a"), ("assistant", "b")], {}),
    ({"text": "all of it"}, [(PLAIN_TEXT, "all of it")], {"format": "text"}),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
     [("user", "a"), ("assistant", "b")], {}),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                        {"from": "human", "value": "nobody answers"}]},
     [("system", "s"), ("user", "a"), ("assistant", "b")], {}),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
     [("system", "s"), ("user", "a"), ("assistant", "b")], {}),
    ({"conversations": [ASKED, {"role": "assistant", "content": "b"}]},
     [("user", "a"), ("assistant", "b")], {}),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
                        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "b"}], "tools": json.dumps([TOOL])},
     [("user", "a"), ("assistant", ""), ("tool", "2"), ("assistant", "b")], {}),
    ({"messages": json.dumps([ASKED, {"role": "assistant", "content": "b"}])},
     [("user", "a"), ("assistant", "b")], {}),
    ({"title": "a", "post": {"body": "b"}}, [("user", "a"), ("assistant", "b")],
     {"fields": {"question": "title", "answer": "post.body"}}),
    ({"a.b": "x", "c": "y"}, [("user", "x"), ("assistant", "y")], {"fields": {"instruction": "a.b", "response": "c"}}),
    ({"instruction": "x", "response": "y", "other": "z"}, [("user", "x"), ("assistant", "z")],
     {"fields": {"response": "other"}}),
    ({"messages": [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "tool_calls": None}],
      "tools": None}, [("user", "a"), ("assistant", "b")], {}),
]


@pytest.mark.parametrize(("row", "messages", "changes"), GOOD_ROWS)
def test_rows_of_every_form(
        row: dict[str, Any], messages: list[tuple[str, str]], changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read(tmp_path / "d.jsonl", **changes)
    assert [(message["role"], message["content"]) for message in found] == messages


def test_a_table_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    rows = [['say "hi", please', "line 1\nline 2"], ["a;b", ""], ["tab\there", "ünï"]]
    with (tmp_path / "d.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["question", "answer"], *rows])
    assert [[message["content"] for message in found] for found in read(tmp_path / "d.csv")] == rows


def test_tools_and_calls_go_along(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "add"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "name": "add"}, {"role": "assistant", "content": "2"}]
    as_text = [CALL | {"function": {"name": "add", "arguments": '{"a": 1}'}}]
    for tools, calls in ([TOOL], [CALL]), (json.dumps([TOOL]), as_text):
        messages[1]["tool_calls"] = calls
        (tmp_path / "d.jsonl").write_text(json.dumps({"messages": messages, "tools": tools}) + "\n")
        (found,) = read(tmp_path / "d.jsonl")
        assert beside(found) == {"tools": [TOOL]} and found[1]["tool_calls"] == [CALL] and found[1]["content"] == ""
        kept = conversations_of(DataConfig(path="d"), tmp_path / "d.jsonl", _new(tmp_path))
        (again,) = kept.at(kept.numbers)
        assert again == found and beside(again) == beside(found)  # the same as on disk


def _new(path: Path) -> Path:
    directory = path / f"work{len([*path.iterdir()])}"
    directory.mkdir()
    return directory


BAD_ROWS: list[tuple[Any, str]] = [
    ({"question": 5, "answer": "b"}, "line 1: field 'question' must be text, but it is a number"),
    ({"question": "a", "answer": ["b"]}, "field 'answer' must be text, but it is a list"),
    ({"question": {"text": "a"}, "answer": "b"}, "it is an object"),
    ({"question": "a", "answer": None}, "field 'answer' is null"),
    ({"question": True, "answer": "b"}, "true or false"),
    ({"prompt": [], "completion": []}, "'completion' is empty"),
    ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "field 'prompt' must be a list"),
    ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}, "no response"),
    ({"conversations": "hello"}, "must be a list of from and value"),
    ({"conversations": None}, "field 'conversations' is null"),
    ({"conversations": ["hello"]}, "message 1 must be an object with from and value"),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "message 1 is from 'alien'; known senders are human"),
    ({"conversations": [{"from": 3, "value": "a"}]}, "message 1 is from 3"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add it"}]}, "has no name"),
    ({"conversations": [{"from": "human"}]}, "message 1 has no 'value', only from"),
    ({"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "b"}]}, "'content' of message 1 is null"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "no response"),
    ({"conversations": []}, "no response"),
    ({"messages": CHAT, "tools": [1]}, "'tools' must be a"),
    ({"messages": CHAT, "tools": "none"}, "'tools' must be"),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "has no name"),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": "call"}]}, "must be a list of objects"),
    ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": []}]}, "is null"),
    ({"messages": [ASKED, {"role": "assistant", "content": {"text": "b"}}]}, "must be text, but it is an"),
    ({"messages": [SYSTEM, ANSWER]}, "before its answer there are only messages of system. Add a user message"),
    ({"messages": [ANSWER]}, "no question: before its answer there is no message"),
    ({"messages": [SYSTEM, ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": "2"}, ANSWER], "tools": [TOOL]},
     "only messages of system, assistant, tool"),
    ({"messages": [SYSTEM, ASKED | {"content": " \n"}, ANSWER]}, "the question is empty.*Write the question"),
    ({"messages": [ASKED | {"content": ""}, ANSWER], "tools": [TOOL]}, "the question is empty"),
    ({"conversations": [{"from": "gpt", "value": "b"}], "system": "s"}, "only messages of system"),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "b"}]}, "only messages of system"),
    ({"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "b"}]}, "the question is empty"),
    ({"prompt": [SYSTEM], "completion": [ANSWER]}, "only messages of system"),
    ({"prompt": "", "completion": "b", "system": "s"}, "the question is empty"),
    ({"instruction": "", "input": " ", "output": "b"}, "the question is empty"),
    ({"text": "a"}, "match no known form .*set data.format to text"),
    ({}, "fields \\(none\\) match no known form"),
    (None, "a row must be an object with fields, but this is null"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_rows_that_cannot_be_used_say_where_and_why(row: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert f"{str(path)!r}, line 1: " in str(error.value)
    path.write_text(f"{LINES}{json.dumps(row)}\n{{'not': 'JSON'\n{LINES}")  # between valid rows, they can be dropped
    kept = conversations_of(DataConfig(path="d", unusable_rows="drop", format="auto"), path, _new(tmp_path))
    assert (kept.rows, len(kept), kept.unusable.count) == (8, 6, 2)
    assert "line 4: " in kept.unusable.examples[0] and "line 5: not JSON" in kept.unusable.examples[1]


def test_a_row_that_asks_and_answers_nothing_is_empty_and_not_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("question,answer\na,b\n,\n")
    kept = conversations_of(DataConfig(path="d"), tmp_path / "d.csv", _new(tmp_path))
    assert (kept.rows, len(kept), kept.unusable.count) == (2, 1, 0)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(LINES.encode() * 500)[:-20], "cannot be unpacked.*truncated or not gzip"),
    "none.jsonl.gz": (LINES.encode(), "is not gzip, despite its name"),
    "empty.jsonl.gz": (b"", "is empty"),
    "damaged.jsonl.gz": (b"\x1f\x8b\x08\x00garbage that is none", "cannot be unpacked"),
    "latin.jsonl.gz": (gzip.compress('{"question": "\xfc"}'.encode("latin-1")), "not UTF-8"),
    "none.jsonl.zst": (b"hello", "is not Zstandard, despite its name"),
    "latin.jsonl": ('{"question": "\xfc"}'.encode("latin-1"), "not UTF-8 text .byte 14"),
    "latin.csv": ("question,answer\n\xfc,b\n".encode("latin-1"), "not UTF-8"),
    "empty.csv": (b"", "has no header"),
    "twice.csv": (b"question,question\na,b\n", "names the column 'question' twice"),
    "short.csv": (b"question,answer\na\n", "line 2: 1 values, but the header names 2"),
    "long.csv": (b"question,answer\na,b\nc,d,e\n", "line 3: 3 values, but the header names 2"),
    "open.csv": (b'question,answer\n"a,b\n', "line 2: the table cannot be read"),
    "quote.csv": (b'question,answer\n"a"x,b\n', "line 2: the table cannot be read"),
    "other.csv": (b"name,colour\na,b\n", "fields name, colour match no known form"),
    "lines.csv": (LINES.encode(), "holds JSON, not a table. Give it a name that ends in .jsonl"),
    "array.csv.gz": (gzip.compress(json.dumps(QA).encode()), "a name that ends in .jsonl.gz"),
    "tabs.csv": (CSV.replace(",", "\t").encode(), "a name that ends in .tsv"),
    "commas.tsv": (CSV.encode(), "a name that ends in .csv"),
    "table.jsonl": (CSV.encode(), "looks like a table. Give it a name that ends in .csv"),
    "table.jsonl.gz": (gzip.compress(CSV.encode()), "looks like a table. Give it a name that ends in .csv.gz"),
    "null.csv": (b"question,answer\n", "no rows"),
    "cut.arrow": (b"ARROW1\x00\x00gone", "is not Arrow, or is truncated"),
    "text.arrow": (b"hello", "is not Arrow, or is truncated"),
    "text.parquet": (b"hello", "is not Parquet"),
    "archive.jsonl": (b"PK\x03\x04...", "ZIP archive"),
    "utf16.jsonl": (LINES.encode("utf-16"), "UTF-16"),
    "page.csv": (b"<!DOCTYPE html>", "web page"),
    "array.json": (b'[{"question": "a"', "not JSON"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_read_say_why(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    if message == "no rows":
        assert read(tmp_path / name) == []
        return
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_zstandard_file_that_is_cut_short(tmp_path: Path) -> None:
    zstd(tmp_path / "whole.zst", LINES.encode() * 2000)
    (tmp_path / "d.jsonl.zst").write_bytes((tmp_path / "whole.zst").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cannot be unpacked.*fetch it again"):
        read(tmp_path / "d.jsonl.zst")


def test_several_files_are_read_in_order_and_named_in_errors(tmp_path: Path) -> None:
    for place, line in enumerate(LINES.splitlines()):
        (tmp_path / f"part-{place}.jsonl").write_text(line)
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "notes.txt").write_text("not data")
    assert read(tmp_path) == EXPECTED == read(tmp_path / "part-*.jsonl") == read(tmp_path / "**" / "p*.jsonl")
    (tmp_path / "part-1.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": 1}\n')
    with pytest.raises(DataError, match=r"part-1.jsonl', line 2: field 'question'"):
        read(tmp_path)


def test_names_that_nothing_is_called_by(tmp_path: Path) -> None:
    for name, message in (
            ("*.jsonl", "No file matches"), ("absent.jsonl", "There is no file"), ("", "directory without data")):
        with pytest.raises(DataError, match=message):
            find_data_files(str(tmp_path / name))


def test_directories_of_save_to_disk(tmp_path: Path) -> None:
    rows = Dataset.from_list(QA)
    DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "both", num_proc=None)
    rows.save_to_disk(tmp_path / "one", num_shards=3)
    assert read(tmp_path / "both") == EXPECTED == read(tmp_path / "one")
    assert read(tmp_path / "both", split="test") == EXPECTED[2:]
    with pytest.raises(DataError, match=r"no split 'dev'. Set split to one that it has: train, test"):
        read(tmp_path / "both", split="dev")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"listed in .*state.json', is missing"):
        read(tmp_path / "one")


def test_a_field_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"line 1: the field 'body' .fields: answer. is missing; this row has question"):
        read(tmp_path / "d.jsonl", fields={"answer": "body"})
