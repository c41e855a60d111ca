"""Rows of instruction data to conversations: four forms, recognised by their fields, with errors that name the row."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from xft_core.data.templates import Message
from xft_core.errors import DataError
from xft_core.files.locate import hub_error
from xft_core.files.parsing import parse_json
from xft_core.recipe.sections import DataConfig

Form = Literal["instruction", "alpaca", "problem", "messages"]

# Fields a row of each form must have. The order is that in which "auto" tries them.
FORM_FIELDS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "problem": ("problem", "solution"),
    "alpaca": ("instruction", "output"),
    "instruction": ("instruction", "response"),
}

BLOCK, LARGEST_BLOCK = 2**20, 2**28  # characters that are read at once
_SPACE = re.compile(r"[ \t\n\r]*")
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,39}")
# First bytes of files that are not read, what such a file is, and what to do.
OTHER_FILES = {
    b"\x1f\x8b": ("compressed by gzip", "Unpack it with gunzip."),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "Unpack it with unzstd."),
    b"BZh": ("compressed by bzip2", "Unpack it with bunzip2."),
    b"\xfd7zXZ\x00": ("compressed by xz", "Unpack it with unxz."),
    b"PK\x03\x04": ("a ZIP archive (or a spreadsheet)", "Unpack it, or export it as JSON lines."),
    b"PAR1": ("Parquet under another name", "Give it a name that ends in .parquet."),
    b"ARROW1": ("an Arrow file", "Write it as Parquet with pyarrow.parquet.write_table."),
    b"SQLite format 3": ("an SQLite database", "Export the rows as JSON lines."),
    b"<!DOCTYPE": ("a web page (HTML)", "Download the file itself, not the page that shows it."),
    b"<html": ("a web page (HTML)", "Download the file itself, not the page that shows it."),
    b"version https://git-lfs": ("a pointer of Git LFS in place of a file", "Fetch the file with git lfs pull."),
    b"\xff\xfe": ("text in UTF-16 or UTF-32 and not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8."),
    b"\xfe\xff": ("text in UTF-16 and not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8."),
}


def read_conversations(config: DataConfig, path: Path | None) -> Iterator[list[Message]]:
    """Conversations of the data file ``path`` (or of the Hub data set when None), each ending with the response.

    A row with an empty response gives an empty last message. Raises DataError for a file that cannot be read, a row of
    another form, and a row without a response.
    """
    rows = _file_rows(path) if path else _hub_rows(config.path, config.split)
    form: Form | None = None if config.format == "auto" else config.format
    for place, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{place}: a row must be an object with fields, this is {_kind(row)}.")
        form = form or _recognise(place, row)
        messages = _conversation(place, row, form)
        yield messages


def _recognise(place: str, row: dict[str, Any]) -> Form:
    """The form of a row that has all of its fields; a field that is null counts only where no other form is whole."""
    for absent in ((None,), ()):
        for form, fields in FORM_FIELDS.items():
            if all(field in row and row[field] not in absent for field in fields):
                return form
    forms = "; ".join(f"{form}: {', '.join(fields)}" for form, fields in FORM_FIELDS.items())
    raise DataError(f"{place}: fields {', '.join(map(str, row)) or '(none)'} are of no known form ({forms}).")


def _conversation(place: str, row: dict[str, Any], form: Form) -> list[Message]:
    if form == "messages":
        return _messages(place, row)
    question_field, answer_field = FORM_FIELDS[form]
    question, answer = (_text(place, row, field, form) for field in (question_field, answer_field))
    extra = row.get("input") if form == "alpaca" else None
    if extra is not None and not isinstance(extra, str):
        raise DataError(f"{place}: field 'input' {_not_text(extra)}")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(place: str, row: dict[str, Any], field: str, form: Form) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field not in row:
        raise DataError(
            f"{place}: a row of the form {form} needs the field {field!r}; this one has {', '.join(map(str, row)) or 'none'}. "
            "All rows must be of one form; correct or remove the row.")
    raise DataError(f"{place}: field {field!r} {_not_text(value)}")


def _not_text(value: Any) -> str:
    """What is wrong with a value that must be text, and what to do, as the end of a sentence."""
    if value is None:
        return "is null. Give it text, or remove the row."
    if isinstance(value, list):
        return ("must be text, it is a list. Text in parts (a list of type and text, as of chat APIs) is not read: join the "
                "parts to one text.")
    return f"must be text, it is {_kind(value)}: {value!r:.80}."


def _kind(value: Any) -> str:
    """A JSON value's type as a person calls it."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _messages(place: str, row: dict[str, Any]) -> list[Message]:
    if "messages" not in row:
        raise DataError(
            f"{place}: a row of the form messages needs the field 'messages'; this one has "
            f"{', '.join(map(str, row)) or 'none'}. All rows must be of one form; correct or remove the row.")
    messages = row["messages"]
    if messages is None:
        raise DataError(f"{place}: field 'messages' is null. Give it a list of role and content, or remove the row.")
    if not isinstance(messages, list):
        raise DataError(f"{place}: field 'messages' must be a list of role and content, it is {_kind(messages)}.")
    for number, item in enumerate(messages, start=1):
        if not isinstance(item, dict):
            raise DataError(f"{place}: message {number} must be an object of role and content, it is {_kind(item)}.")
        for field in ("role", "content"):
            if field not in item:
                raise DataError(
                    f"{place}: message {number} has no {field!r}, only {', '.join(map(str, item)) or 'no field at all'}.")
            if not isinstance(item[field], str):
                raise DataError(f"{place}: {field!r} of message {number} {_not_text(item[field])}")
        if not _ROLE.fullmatch(item["role"]):
            raise DataError(
                f"{place}: the role of message {number} is {item['role']!r:.80}. A role is one word, such as user.")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"{place}: the conversation has no response: its last message must be the assistant's.")
    return [{"role": item["role"], "content": item["content"]} for item in messages]


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    _refuse_other_formats(path)
    try:
        with path.open(encoding="utf-8-sig") as stream:
            head = stream.read(1)
            while head.isspace():
                head = stream.read(1)
            stream.seek(0)
            yield from _array_rows(path, stream) if head == "[" else _line_rows(path, stream)
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text (byte {_bad_byte(path, error)}).") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def _line_rows(path: Path, stream: TextIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{str(path)!r}, line {number}: not JSON: {error.msg}.") from None
        except ValueError as error:
            raise DataError(f"{str(path)!r}, line {number}: {error}.") from None
        yield f"{str(path)!r}, line {number}", row


def _array_rows(path: Path, stream: TextIO) -> Iterator[tuple[str, Any]]:
    """The items of a JSON array, one at a time: never more of the file in memory than the longest needs."""
    decoder, number = json.JSONDecoder(), 0
    text, place, line, ended, size = stream.read(BLOCK), 0, 1, False, BLOCK
    wanted = "["  # what comes next: the array's beginning, an item or its end, a comma or its end, nothing

    def fail(message: str, where: int) -> DataError:
        return DataError(f"{str(path)!r}, line {line + text.count(chr(10), 0, where)}: not JSON: {message}.")

    while True:
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        row, end, problem = None, place, None
        if place < len(text) and wanted in ("item", "item or ]") and text[place] != "]":
            try:
                row, end = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                problem = error
            except RecursionError:
                raise DataError(f"{str(path)!r}, row {number + 1} cannot be read: it is nested too deeply.") from None
        # An item counts once something follows it: a number may go on, and a mistake may be the end of the block only.
        if not ended and (place == len(text) or problem or end == len(text)):
            line += text.count("\n", 0, place)
            block = stream.read(size)
            text, place, ended, size = text[place:] + block, 0, not block, min(2 * size, LARGEST_BLOCK) if problem else BLOCK
            continue
        if problem:
            raise fail(problem.msg, problem.pos)
        following = text[place:place + 1]
        if wanted in ("item", "item or ]") and end > place:
            number += 1
            try:
                if "\\u" in text[place:end]:
                    row = parse_json(text[place:end])  # looks at halves of surrogate pairs
            except ValueError as error:
                raise DataError(f"{str(path)!r}, row {number}: {error}.") from None
            yield f"{str(path)!r}, row {number}", row
            place, wanted = end, ", or ]"
        elif wanted == "[" and following == "[":
            place, wanted = place + 1, "item or ]"
        elif wanted == ", or ]" and following == ",":
            place, wanted = place + 1, "item"
        elif wanted in (", or ]", "item or ]") and following == "]":
            place, wanted = place + 1, ""
        elif not wanted and not following:
            return
        else:
            raise fail({"": "Extra data", ", or ]": "Expecting ',' delimiter"}.get(wanted, "Expecting value"), place)


def _bad_byte(path: Path, error: UnicodeDecodeError) -> int:
    """Where in the file the first byte is that is no UTF-8: the error knows the place in a block only."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as found:
                return read - waiting + found.start
            read += len(block)
    return error.start if read == 0 else read


def _refuse_other_formats(path: Path) -> None:
    """Raise DataError for a file that by its name or its first bytes is of a kind that is not read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    for begin, (kind, remedy) in OTHER_FILES.items():
        if head.startswith(begin):
            raise DataError(f"{str(path)!r} is {kind}, not JSON, JSON lines or Parquet. {remedy}")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv") or (suffix not in (".json", ".jsonl") and _looks_like_a_table(head)):
        raise DataError(
            f"{str(path)!r} is a table of {'tabs' if suffix == '.tsv' else 'comma-separated values (CSV)'}, not JSON, JSON "
            "lines or Parquet. Convert it: python -c \"import pandas; pandas.read_csv('IN.csv').to_json('OUT.jsonl', "
            "orient='records', lines=True)\" (with sep='\\t' for tabs).")


def _looks_like_a_table(head: bytes) -> bool:
    first = head.split(b"\n", 1)[0].strip().lower()
    return not first.startswith((b"{", b"[")) and any(
        {question.encode(), answer.encode()} <= {name.strip(b' "\'') for name in re.split(rb"[,\t]", first)}
        for question, answer in (fields for fields in FORM_FIELDS.values() if len(fields) == 2))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(path, memory_map=True).iter_batches(batch_size=1024)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{str(path)!r}, row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, TypeError, LookupError) as error:
        raise DataError(f"{str(path)!r} is not Parquet: {(str(error).splitlines() or [''])[0]}") from None


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    repository, _, revision = name.partition("@")
    try:
        rows = datasets.load_dataset(repository, split=split, revision=revision or None)
    except Exception as error:
        raise hub_error(repository, error, DataError) from None
    number = 0
    for batch in rows.with_format("arrow").iter(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{name}, row {number}", row
