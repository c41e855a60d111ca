"""Rows of instruction data to conversations: four forms, recognised by their fields."""

import re
from typing import Any, Literal

from xft_core.data.templates import Message
from xft_core.errors import DataError

Form = Literal["instruction", "alpaca", "problem", "messages"]

# Fields a row of each form must have. The order is that in which "auto" tries them.
FORM_FIELDS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "problem": ("problem", "solution"),
    "alpaca": ("instruction", "output"),
    "instruction": ("instruction", "response"),
}
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,39}")


def recognise(row: dict[str, Any]) -> Form:
    """The form of a row that has all of its fields; a field that is null counts only where no other form is whole."""
    for absent in ((None,), ()):
        for form, fields in FORM_FIELDS.items():
            if all(field in row and row[field] not in absent for field in fields):
                return form
    forms = "; ".join(f"{form}: {', '.join(fields)}" for form, fields in FORM_FIELDS.items())
    raise DataError(f"fields {', '.join(map(str, row)) or '(none)'} are of no known form ({forms}).")


def conversation(row: Any, form: Form | None) -> list[Message]:
    """A row of that form (None: whatever it is of) as messages, of which the last is the response. Raises DataError without
    the row's place."""
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with fields, this is {_kind(row)}.")
    form = form or recognise(row)
    if form == "messages":
        return _messages(row)
    question_field, answer_field = FORM_FIELDS[form]
    question, answer = (_text(row, field, form) for field in (question_field, answer_field))
    extra = row.get("input") if form == "alpaca" else None
    if extra is not None and not isinstance(extra, str):
        raise DataError(f"field 'input' {_not_text(extra)}")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(row: dict[str, Any], field: str, form: Form) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field not in row:
        raise DataError(
            f"a row of the form {form} needs the field {field!r}; this one has {', '.join(map(str, row)) or 'none'}. "
            "All rows must be of one form; correct or remove the row.")
    raise DataError(f"field {field!r} {_not_text(value)}")


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


def _messages(row: dict[str, Any]) -> list[Message]:
    if "messages" not in row:
        raise DataError(
            "a row of the form messages needs the field 'messages'; this one has "
            f"{', '.join(map(str, row)) or 'none'}. All rows must be of one form; correct or remove the row.")
    messages = row["messages"]
    if messages is None:
        raise DataError("field 'messages' is null. Give it a list of role and content, or remove the row.")
    if not isinstance(messages, list):
        raise DataError(f"field 'messages' must be a list of role and content, it is {_kind(messages)}.")
    for number, item in enumerate(messages, start=1):
        if not isinstance(item, dict):
            raise DataError(f"message {number} must be an object of role and content, it is {_kind(item)}.")
        for field in ("role", "content"):
            if field not in item:
                raise DataError(
                    f"message {number} has no {field!r}, only {', '.join(map(str, item)) or 'no field at all'}.")
            if not isinstance(item[field], str):
                raise DataError(f"{field!r} of message {number} {_not_text(item[field])}")
        if not _ROLE.fullmatch(item["role"]):
            raise DataError(
                f"the role of message {number} is {item['role']!r:.80}. A role is one word, such as user.")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise DataError("the conversation has no response: its last message must be the assistant's.")
    return [{"role": item["role"], "content": item["content"]} for item in messages]
