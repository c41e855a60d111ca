"""Convert lists of messages to conversations, with all that a chat template may use: system messages, tools, tool calls."""

import json
import math
import re
from typing import Any

from xft_core.data.conversation import Conversation, Message
from xft_core.errors import DataError

# Fields that messages may have besides role and content, passed unchanged to the chat template.
MORE_FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "assistant": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function": "tool"}
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,39}")


def chat(messages: list[Any], row: dict[str, Any]) -> Conversation:
    """Return the conversation of ``messages``: objects with role and content, the last one the assistant's. ``row``: the row
    that holds them. Raises DataError."""
    found: list[Message] = []
    for number, item in enumerate(messages, start=1):
        if not isinstance(item, dict):
            raise DataError(
                f"message {number} must be an object with role and content, but it is {kind(item)}. Correct or remove the row.")
        found.append(_message(number, item))
    if not found or found[-1]["role"] != "assistant":
        raise DataError(
            "the conversation has no response: its last message must be the assistant's. Add one, or remove the row.")
    return Conversation(found, tools=_tools(row.get("tools")))


def sharegpt(messages: list[Any], row: dict[str, Any]) -> Conversation:
    """Return the conversation of objects with from and value (or role and content, if they have those). Human messages after
    the last answer are left out, because nothing answers them."""
    found = []
    for number, item in enumerate(messages, start=1):
        if not isinstance(item, dict):
            raise DataError(f"message {number} must be an object with from and value, but it is {kind(item)}.")
        if "from" not in item and "role" in item:
            found.append(item)
            continue
        for field in ("from", "value"):
            if field not in item:
                raise DataError(
                    f"message {number} has no {field!r}, only {', '.join(map(str, item)) or 'no field at all'}.")
        if item["from"] == "function_call":
            calls = parsed(item["value"])
            calls = [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
            found.append({"role": "assistant", "tool_calls": calls})
            continue
        role = SHAREGPT_ROLES.get(item["from"]) if isinstance(item["from"], str) else None
        if role is None:
            raise DataError(f"message {number} is from {item['from']!r:.80}; known senders are {', '.join(SHAREGPT_ROLES)}, "
                            "function_call.")
        found.append({"role": role, "content": item["value"]})
    system = row.get("system")
    if isinstance(system, str) and system.strip() and not (found and found[0].get("role") == "system"):
        found.insert(0, {"role": "system", "content": system})
    while found and found[-1].get("role") == "user":
        found.pop()
    return chat(found, row)


def prompt_and_completion(prompt: list[Any], completion: list[Any], row: dict[str, Any]) -> Conversation:
    """Return the conversation of a row in TRL's conversational form, in which both fields are lists of messages."""
    if not completion:
        raise DataError("field 'completion' is empty. Give it the assistant's message, or remove the row.")
    return chat([*prompt, *completion], row)


def is_null(value: Any) -> bool:
    """Return whether a value is missing. Tables have NaN instead of null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def not_text(value: Any) -> str:
    """Return the end of an error message about a value that must be text: the problem and its remedy."""
    if is_null(value):
        return "is null. Give it text, or remove the row."
    if isinstance(value, list):
        return ("must be text, but it is a list. Text in parts (a list of type and text, as in chat APIs) is not supported: "
                "join the parts into one text.")
    return f"must be text, but it is {kind(value)}: {value!r:.80}. Write it as text, or remove the row."


def kind(value: Any) -> str:
    """Return the everyday name of a JSON value's type."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _message(number: int, item: dict[str, Any]) -> Message:
    more = {name: _without_nulls(item[name]) for name in MORE_FIELDS if not is_null(item.get(name)) and item[name] != []}
    for field in ("role", "content"):
        if field not in item and not (field == "content" and "tool_calls" in more):
            raise DataError(f"message {number} has no {field!r}, only {', '.join(map(str, item)) or 'no field at all'}.")
    content = item.get("content")
    if is_null(content) and "tool_calls" in more:
        content = ""  # a call needs no text
    for field, value in (("role", item["role"]), ("content", content)):
        if not isinstance(value, str):
            raise DataError(f"{field!r} of message {number} {not_text(value)}")
    if not _ROLE.fullmatch(item["role"]):
        raise DataError(f"the role of message {number} is {item['role']!r:.80}. A role is one word, such as user.")
    if "tool_calls" in more:
        more["tool_calls"] = _calls(number, more["tool_calls"])
    return {"role": item["role"], "content": content, **more}


def _calls(number: int, calls: Any) -> list[Any]:
    """Return the calls as templates expect them: with arguments as an object, which many data sets write as text."""
    calls = parsed(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"'tool_calls' of message {number} must be a list of objects, but it is {kind(calls)}.")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"a tool call of message {number} has no name: {call!r:.80}.")
        if "arguments" in function:
            function["arguments"] = parsed(function["arguments"])
    return calls


def _tools(tools: Any) -> list[Any] | None:
    """Return the content of the column tools: a list of JSON schemas, possibly written as text."""
    tools = _without_nulls(parsed(tools))
    if is_null(tools) or tools in ([], ""):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"field 'tools' must be a list of objects (JSON schemas), but it is {kind(tools)}: {tools!r:.80}.")
    return tools


def parsed(value: Any) -> Any:
    """Parse a list or an object that is written as JSON text; return any other value unchanged."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _without_nulls(value: Any) -> Any:
    """Return the value without null fields: Arrow gives every object the fields of all the others."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
