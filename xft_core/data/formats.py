"""Rows of instruction data to conversations: forms, recognised by their fields. Lists of messages: chats.py."""

from typing import Any, Literal

from xft_core.data.chats import chat, is_null, kind, not_text, parsed, prompt_and_completion, sharegpt
from xft_core.data.conversation import ASK_NOTHING, PLAIN_TEXT, Conversation, is_asked
from xft_core.errors import DataError

Form = Literal[
    "instruction", "alpaca", "problem", "messages", "sharegpt", "prompt_completion", "question_answer", "text"]

# Fields a row of each form must have. The order is that in which "auto" tries them, but for text: that all of a row is to be
# learned is not a guess to make.
FORM_FIELDS: dict[Form, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "problem": ("problem", "solution"),
    "alpaca": ("instruction", "output"),
    "instruction": ("instruction", "response"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "text": ("text",),
}

WITH_SYSTEM = ("prompt_completion", "question_answer")  # of these a field system is the system's message


def recognise(row: dict[str, Any]) -> Form:
    """The form of a row that has all of its fields; a field that is null counts only where no other form is whole."""
    for absent in ((None,), ()):
        for form, fields in FORM_FIELDS.items():
            if form != "text" and all(field in row and row[field] not in absent for field in fields):
                return form
    forms = "; ".join(f"{form}: {', '.join(fields)}" for form, fields in FORM_FIELDS.items())
    raise DataError(
        f"fields {', '.join(map(str, row)) or '(none)'} are of no known form ({forms}). Name fields that are called otherwise "
        "in data.fields; of the form text, say so in data.format.")


def conversation(row: Any, form: Form | None) -> Conversation:
    """A row of that form (None: whatever it is of) as messages, of which the last is the response. Raises DataError without
    the row's place."""
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with fields, this is {kind(row)}. Correct or remove it.")
    form = form or recognise(row)
    if form == "messages":
        return chat(_list(row, "messages", form), row)
    if form == "sharegpt":
        return sharegpt(_list(row, "conversations", form), row)
    if form == "text":
        return Conversation([{"role": PLAIN_TEXT, "content": _text(row, "text", form)}])
    question_field, answer_field = FORM_FIELDS[form]
    if form == "prompt_completion" and any(isinstance(row.get(field), list) for field in (question_field, answer_field)):
        return prompt_and_completion(_list(row, question_field, form), _list(row, answer_field, form), row)
    question, answer = (_text(row, field, form) for field in (question_field, answer_field))
    extra = row.get("input") if form == "alpaca" else None
    if extra is not None and not isinstance(extra, str):
        raise DataError(f"field 'input' {not_text(extra)}")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    system = row.get("system") if form in WITH_SYSTEM else None
    if system is not None and not isinstance(system, str):
        raise DataError(f"field 'system' {not_text(system)}")
    begin = [{"role": "system", "content": system}] if system and system.strip() else []
    return Conversation([*begin, {"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def check_asks(messages: Conversation) -> None:
    """Raise DataError, without the row's place, where nothing is asked before the response."""
    given = messages[:-1]
    if is_asked(messages if messages[0]["role"] == PLAIN_TEXT else given):
        return
    if any(message["role"] not in ASK_NOTHING for message in given):
        raise DataError("the question is empty: the row has an answer to nothing. Write the question, or remove the row.")
    roles = ", ".join(dict.fromkeys(message["role"] for message in given))
    before = f"are only messages of {roles}" if given else "is no message"
    raise DataError(
        f"the conversation has no question: before its answer there {before}. Add a message of the user, or remove the row.")


def _text(row: dict[str, Any], field: str, form: Form) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    raise _missing(row, field, form) if field not in row else DataError(f"field {field!r} {not_text(value)}")


def _list(row: dict[str, Any], field: str, form: Form) -> list[Any]:
    if field not in row:
        raise _missing(row, field, form)
    messages = parsed(row[field])  # some write it as text
    of = "from and value" if form == "sharegpt" else "role and content"
    if is_null(messages):
        raise DataError(f"field {field!r} is null. Give it a list of {of}, or remove the row.")
    if not isinstance(messages, list):
        raise DataError(f"field {field!r} must be a list of {of}, it is {kind(messages)}.")
    return messages


def _missing(row: dict[str, Any], field: str, form: Form) -> DataError:
    return DataError(
        f"a row of the form {form} needs the field {field!r}; this one has {', '.join(map(str, row)) or 'none'}. "
        "All rows must be of one form; correct or remove the row.")
