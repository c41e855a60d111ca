"""Rows of instruction data to conversations: four forms, recognised by their fields, with errors that name the row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from xft_core.config import DataConfig
from xft_core.data.templates import Message
from xft_core.errors import DataError
from xft_core.locations import hub_error
from xft_core.plain_text import parse_json

Form = Literal["instruction", "alpaca", "problem", "messages"]

# Fields a row of each form must have. The order is that in which "auto" tries them.
FORM_FIELDS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "problem": ("problem", "solution"),
    "alpaca": ("instruction", "output"),
    "instruction": ("instruction", "response"),
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
            raise DataError(f"{place}: a row must be an object with fields, this is a {type(row).__name__}.")
        form = form or _recognise(place, row)
        messages = _conversation(place, row, form)
        yield messages


def _recognise(place: str, row: dict[str, Any]) -> Form:
    for form, fields in FORM_FIELDS.items():
        if all(field in row for field in fields):
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
        raise DataError(f"{place}: field 'input' must be text, it is {extra!r}.")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(place: str, row: dict[str, Any], field: str, form: Form) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field not in row or value is None:
        raise DataError(
            f"{place}: a row of the form {form} needs the field {field!r}; this one has {', '.join(map(str, row)) or 'none'}. "
            "All rows must be of one form; correct or remove the row.")
    raise DataError(f"{place}: field {field!r} must be text, it is {value!r:.80}.")


def _messages(place: str, row: dict[str, Any]) -> list[Message]:
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(
            isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
            for item in messages):
        raise DataError(f"{place}: a row of the form messages needs the field 'messages', a list of role and content.")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError(f"{place}: the conversation has no response: its last message must be the assistant's.")
    return [{"role": item["role"], "content": item["content"]} for item in messages]


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    if text.lstrip().startswith("["):
        try:
            rows = parse_json(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{str(path)!r}, line {error.lineno}: not JSON: {error.msg}.") from None
        except ValueError as error:
            raise DataError(f"{str(path)!r} cannot be read: {error}.") from None
        yield from ((f"{str(path)!r}, row {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON text may hold U+2028 as it is
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{str(path)!r}, line {number}: not JSON: {error.msg}.") from None
        except ValueError as error:
            raise DataError(f"{str(path)!r}, line {number}: {error}.") from None
        yield f"{str(path)!r}, line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches()
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
    yield from ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))
