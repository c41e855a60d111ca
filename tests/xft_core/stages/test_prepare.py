"""Every data form and template gives exactly the tokens that the loss may count."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.factories import CHAT_TEMPLATE, dense_model, tokenizer
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import load_rows
from xft_core.data.templates import MAGICODER_SYSTEM
from xft_core.data.tokenize import tokenise
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig
from xft_core.reporting.run.markdown import _data_table
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import run_stage

ANSWER = "def f(x):\n    return x + 1"
FORMS: dict[str, dict[str, Any]] = {
    "instruction": {"instruction": "Add one", "response": ANSWER},
    "alpaca": {"instruction": "Add", "input": "one", "output": ANSWER},
    "problem": {"problem": "Add one", "solution": ANSWER},
    "messages": {"messages": [{"role": "user", "content": "Add one"}, {"role": "assistant", "content": ANSWER}]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("model"))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepare(tmp_path: Path, model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    config = DataConfig(path=str(data), max_length=256, held_out_rows=1, decontaminate=False).model_copy(update=changes)
    return run_stage(PrepareStage(output=tmp_path / "out", model=str(model), data=config)).manifest.metrics


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", ["magicoder", "chat"])
def test_the_loss_counts_exactly_the_response_and_the_end_token(
        form: str, template: str, tmp_path: Path, model: Path) -> None:
    data = write(tmp_path / "data.jsonl", [FORMS[form], json.loads(json.dumps(FORMS[form]).replace("+ 1", "+ 2"))])
    prepare(tmp_path, model, data, template=template)
    batch = (packed := PackedRows(load_rows(tmp_path / "out", "train"), 256, packing=True)).collate([packed[0]])
    tokens = tokenizer()
    counted = batch["labels"][0][batch["labels"][0] != IGNORED]
    assert tokens.decode(counted).rstrip("0123456789") == ANSWER[:-1] + tokens.decode(counted)[len(ANSWER) - 1] + "</s>"
    assert counted[-1] == tokens.eos_token_id and (counted == tokens.eos_token_id).sum() == 1
    given = tokens.decode(batch["input_ids"][0][batch["labels"][0] == IGNORED])
    question = "Add\n\none" if form == "alpaca" else "Add one"
    expected = {
        "magicoder": f"{MAGICODER_SYSTEM}\n\n@@ Instruction\n{question}\n\n@@ Response\n",
        "chat": f"<|user|>\n{question}</s>\n<|assistant|>\n"}[template]
    assert given == expected


def test_a_conversation_teaches_its_last_answer_only() -> None:
    messages = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    tokens = tokenizer()
    row, cut = tokenise(messages, DataConfig(template="chat"), tokens)
    assert row and not cut and tokens.decode(row.input_ids[row.prompt_length:]) == "d</s>"
    with pytest.raises(DataError, match="4 messages does not fit the template magicoder"):
        tokenise(messages, DataConfig(template="magicoder"), tokens)


def test_a_template_without_end_token_gets_one() -> None:
    tokens = tokenizer()
    tokens.chat_template = CHAT_TEMPLATE.replace("</s>", "")
    row, _ = tokenise(FORMS["messages"]["messages"], DataConfig(template="chat"), tokens)
    assert row and tokens.decode(row.input_ids[row.prompt_length:]) == ANSWER + "</s>"


def test_a_long_response_is_cut_and_a_prompt_without_room_dropped(tmp_path: Path, model: Path) -> None:
    rows = [
        FORMS["instruction"], {"instruction": "Add one", "response": "x" * 400},
        {"instruction": "y" * 400, "response": "z"}, {"instruction": "w", "response": "v"}]
    metrics = prepare(tmp_path, model, write(tmp_path / "d.jsonl", rows))
    assert (metrics["truncated"], metrics["dropped_no_room"], metrics["rows_read"]) == (1, 1, 4)
    assert metrics["train_rows"] + metrics["held_out_rows"] == 3
    lengths = load_rows(tmp_path / "out", "train").lengths() + load_rows(tmp_path / "out", "held_out").lengths()
    assert max(lengths) == 256
    messages = [{"role": "user", "content": "Add one"}, {"role": "assistant", "content": "x" * 400}]
    row, cut = tokenise(messages, DataConfig(max_length=200), tokenizer())
    assert row and cut and len(row.input_ids) == 200 and row.input_ids[-1] != tokenizer().eos_token_id


def test_duplicates_and_empty_responses_are_dropped_and_counted(tmp_path: Path, model: Path) -> None:
    rows = [FORMS["instruction"]] * 3 + [{"instruction": "a", "response": "  "}, {"instruction": "b", "response": "c"}]
    metrics = prepare(tmp_path, model, write(tmp_path / "d.jsonl", rows))
    assert (metrics["dropped_duplicate"], metrics["dropped_empty_response"]) == (2, 1)
    assert (metrics["train_rows"], metrics["held_out_rows"]) == (1, 1)


def test_json_jsonl_and_parquet_give_the_same(tmp_path: Path, model: Path) -> None:
    rows = [{"instruction": f"Add {i}", "response": f"x + {i}"} for i in range(10)]
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    paths = [write(tmp_path / "d.jsonl", rows), tmp_path / "d.json", tmp_path / "d.parquet"]
    digests = set()
    for number, path in enumerate(paths):
        config = DataConfig(path=str(path), max_length=256, held_out_rows=2)
        digests.add(run_stage(PrepareStage(output=tmp_path / f"o{number}", model=str(model), data=config)).manifest.digest)
    assert len(digests) == 1


def test_line_separators_inside_texts_and_a_byte_order_mark_are_fine(tmp_path: Path, model: Path) -> None:
    rows = [{"instruction": f"a\u2028b\u0085{i}", "response": "c"} for i in range(3)]
    text = "\ufeff" + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "d.jsonl").write_text(text, encoding="utf-8")
    assert prepare(tmp_path, model, tmp_path / "d.jsonl")["rows_read"] == 3


def test_fewer_rows_than_asked_for_are_told(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At most a fifth of the rows is held out, and at most a fifth of the rest is reserved."""
    rows = [{"instruction": f"say {number}", "response": f"it is {number}"} for number in range(20)]
    with caplog.at_level(logging.WARNING):
        found = prepare(tmp_path, model, write(tmp_path / "a.jsonl", rows), held_out_rows=9, reserved_rows=4)
    assert (found["held_out_rows"], found["reserved_rows"]) == (4, 4)
    assert [line for line in caplog.messages if "at most a fifth" in line] == [
        "prepare: 4 rows are held out, not 9 (data.held_out_rows): at most a fifth of the rows are"]


def test_the_split_seed_alone_decides_the_split(tmp_path: Path, model: Path) -> None:
    data = write(tmp_path / "d.jsonl", [{"instruction": f"Add {i}", "response": f"x + {i}"} for i in range(20)])
    config = DataConfig(path=str(data), max_length=256, held_out_rows=3, max_rows=12)
    assert "seed" not in PrepareStage.model_fields  # so runs with any seed share one stage and one key

    def held_out(name: str, seed: int) -> str:
        run_stage(PrepareStage(
            output=tmp_path / name, model=str(model), data=config.model_copy(update={"split_seed": seed})))
        return (tmp_path / name / "held_out.jsonl").read_text()

    assert held_out("a", 0) == held_out("b", 0) != held_out("c", 1)
    train = (tmp_path / "a" / "train.jsonl").read_text().splitlines()
    held = (tmp_path / "a" / "held_out.jsonl").read_text().splitlines()
    assert len(held) == 2 and len(train) == 10 and not set(train) & set(held)


@pytest.mark.parametrize(("content", "message"), [
    ("", "holds no rows"),
    ('{"instruction": "a", "response": "b"}\n{"instruction": "a"\n', "line 2: not JSON"),
    ('{"instruction": "a", "response": "b"}\n{"instruction": "a"}\n', "line 2: .*needs the field 'response'"),
    ('{"instruction": "a", "response": null}\n', "line 1: field 'response' is null"),
    ('{"instruction": "a", "response": ["b"]}\n', "line 1: field 'response' must be text, but it is a list. Text in parts"),
    ('{"instruction": "a", "input": 3, "output": "b"}\n', "line 1: field 'input' must be text, but it is a number: 3"),
    ('{"messages": null}\n', "line 1: field 'messages' is null"),
    ('{"messages": "hi"}\n', "line 1: field 'messages' must be a list of role and content, but it is text"),
    ('{"messages": ["hi"]}\n', "line 1: message 1 must be an object with role and content, but it is text"),
    ('{"messages": [{"role": "user"}]}\n', "line 1: message 1 has no 'content', only role"),
    ('{"messages": [{"role": "user", "content": null}]}\n', "line 1: 'content' of message 1 is null"),
    ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}\n', "'content' of message 1 .* is a list"),
    ('{"messages": [{"role": "<s>", "content": "a"}]}\n', "the role of message 1 is '<s>'"),
    ('[{"instruction": "a", "response": "b"},\n {"instruction": "a",, }]', "line 2: not JSON"),
    ('[{"instruction": "a", "response": "b"}', "line 1: not JSON: Expecting ',' delimiter"),
    ('[{"instruction": "a", "response": "b"}]\n x', "line 2: not JSON: Extra data"),
    ('instruction,response\na,b\n', "looks like a table. Give it a name that ends in .csv"),
    ('{"instruction": "a", "response": "b"}\n{"problem": "a", "solution": "b"}\n', "line 2: .*form instruction.*problem"),
    ('{"text": "a"}\n', "line 1: fields text match no known form"),
    ('{"messages": [{"role": "user", "content": "a"}]}\n', "line 1: the conversation has no response"),
    ('[1, 2]', "row 1: a row must be an object"),
    ('{"instruction": "a", "response": "\\ud83d"}\n', "line 1: it contains half of a surrogate pair"),
    ('{"instruction": "a", "response": 5}\n', "line 1: field 'response' must be text, but it is a number: 5"),
    ('{"instruction": "a", "response": "b"}\n', "1 are left; at least 2"),
])
def test_data_that_cannot_be_used_says_where_and_why(content: str, message: str, tmp_path: Path, model: Path) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, model, tmp_path / "d.jsonl")
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_or_not_text(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        prepare(tmp_path, model, tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="is a URL, and files are not downloaded"):
        PrepareStage(output=tmp_path, model=str(model), data=DataConfig(path="https://a.b/d.jsonl")).inputs()
    with pytest.raises(DataError, match="is a directory"):
        prepare(tmp_path, model, tmp_path)
    for name, content, message in (
            ("d.txt", b"instruction,response\na,b\n", "looks like a table. Give it a name that ends in .csv"),
            ("d.tsv", b"instruction\tresponse\n", "holds no rows"),
            ("d.jsonl.gz", b"\x1f\x8b\x08\x00", "cannot be unpacked"), ("d.json", b"\x28\xb5\x2f\xfd", "not Zstandard"),
            ("d.zip", b"PK\x03\x04", "ZIP archive"), ("d.data", b"PAR1", "Parquet under another name"),
            ("d.jsonl", b"\xff\xfea\x00", "UTF-16"), ("d.json", b"<!DOCTYPE html>", "a web page")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            prepare(tmp_path, model, tmp_path / name)
    (tmp_path / "d.jsonl").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(DataError, match=r"not UTF-8 text .byte 7"):
        prepare(tmp_path, model, tmp_path / "d.jsonl")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not Parquet"):
        prepare(tmp_path, model, tmp_path / "d.parquet")


def test_reserved_rows_of_a_file_are_neither_trained_on_nor_held_out(tmp_path: Path, model: Path) -> None:
    """Rows in both files go to the reported one, and the report's table still adds up."""
    rows = [{"instruction": f"Add {number}", "response": f"x + {number}"} for number in range(30)]
    data, held_out = write(tmp_path / "data.jsonl", rows), write(tmp_path / "held_out.jsonl", rows[20:26])
    reserved = write(tmp_path / "reserved.jsonl", [*rows[24:30], {"instruction": "Only here", "response": "y"}])
    counts = prepare(tmp_path, model, data, held_out_path=str(held_out), reserved_path=str(reserved))
    assert (counts["train_rows"], counts["held_out_rows"], counts["reserved_rows"]) == (20, 6, 5)
    assert (counts["dropped_held_out"], counts["dropped_reserved"], counts["reserved_dropped_held_out"]) == (6, 4, 2)
    texts = {split: {json.dumps(json.loads(line)) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()}
             for split in ("train", "held_out", "reserved")}
    assert not texts["train"] & texts["held_out"] and not texts["train"] & texts["reserved"]
    assert not texts["held_out"] & texts["reserved"]
    table = _data_table({name: value for name, value in counts.items() if isinstance(value, int)}, None)
    assert "not accounted for" not in table and "rows reserved to choose by" in table


def test_a_file_of_reserved_rows_that_leaves_none_is_refused(tmp_path: Path, model: Path) -> None:
    rows = [{"instruction": f"Add {number}", "response": f"x + {number}"} for number in range(9)]
    data, held_out = write(tmp_path / "data.jsonl", rows), write(tmp_path / "held_out.jsonl", rows[:3])
    with pytest.raises(DataError, match=r"data\.reserved_path\) is left"):
        prepare(tmp_path, model, data, held_out_path=str(held_out), reserved_path=str(held_out))
