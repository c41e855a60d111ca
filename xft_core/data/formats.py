"""Convert rows of instruction data to conversations. The form of a row is recognised by its fields. Message lists: chats.py."""

from typing import Any, Literal

from xft_core.data.chats import chat, is_null, kind, not_text, parsed, prompt_and_completion, sharegpt
from xft_core.data.conversation import ASK_NOTHING, PLAIN_TEXT, Conversation, is_asked
from xft_core.errors import DataError

Form = Literal[
    "instruction", "alpaca", "problem", "messages", "sharegpt", "prompt_completion", "question_answer", "text"]

# Fields that a row of each form must have, in the order in which "auto" tries the forms. "auto" never tries text: whether an
# entire row should be learned must not be guessed.
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

WITH_SYSTEM = ("prompt_completion", "question_answer")  # in these forms a field system is the system message


def recognise(row: dict[str, Any]) -> Form:
    """Return the form for which the row has all fields. A null field counts only if no form has all its fields non-null."""
    for absent in ((None,), ()):
        for form, fields in FORM_FIELDS.items():
            if form != "text" and all(field in row and row[field] not in absent for field in fields):
                return form
    forms = "; ".join(f"{form}: {', '.join(fields)}" for form, fields in FORM_FIELDS.items())
    raise DataError(
        f"fields {', '.join(map(str, row)) or '(none)'} match no known form ({forms}). Name your fields in data.fields if they "
        "are called otherwise. For the form text, set data.format to text.")


def conversation(row: Any, form: Form | None) -> Conversation:
    """Return a row of the given form (None: of any form) as messages; the last is the response. Raises DataError without the
    row's location."""
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with fields, but this is {kind(row)}. Correct or remove it.")
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
    """Raise DataError, without the row's location, if nothing is asked before the response."""
    given = messages[:-1]
    if is_asked(messages if messages[0]["role"] == PLAIN_TEXT else given):
        return
    if any(message["role"] not in ASK_NOTHING for message in given):
        raise DataError("the question is empty. Write the question, or remove the row.")
    roles = ", ".join(dict.fromkeys(message["role"] for message in given))
    before = f"are only messages of {roles}" if given else "is no message"
    raise DataError(
        f"the conversation has no question: before its answer there {before}. Add a user message, or remove the row.")


def _text(row: dict[str, Any], field: str, form: Form) -> str:
    value = row.get(field)
    if isinstance(value, str):
        return value
    raise _missing(row, field, form) if field not in row else DataError(f"field {field!r} {not_text(value)}")


def _list(row: dict[str, Any], field: str, form: Form) -> list[Any]:
    if field not in row:
        raise _missing(row, field, form)
    messages = parsed(row[field])  # some data sets write it as text
    of = "from and value" if form == "sharegpt" else "role and content"
    if is_null(messages):
        raise DataError(f"field {field!r} is null. Give it a list of {of}, or remove the row.")
    if not isinstance(messages, list):
        raise DataError(f"field {field!r} must be a list of {of}, but it is {kind(messages)}.")
    return messages


def _missing(row: dict[str, Any], field: str, form: Form) -> DataError:
    return DataError(
        f"a row of the form {form} needs the field {field!r}; this one has {', '.join(map(str, row)) or 'none'}. "
        "All rows must have the same form; correct or remove the row.")
