"""One conversation: the common representation of all row forms."""

from collections.abc import Iterable
from typing import Any

Message = dict[str, Any]
"""``role`` and ``content`` (text); a tool call or a tool's answer also has fields of chats.MORE_FIELDS."""

PLAIN_TEXT = "plain text"  # role of the only message in a row that is not a conversation: the entire text is learned
ASK_NOTHING = frozenset({"system", "developer", "assistant", "tool", "function"})  # roles


class Conversation(list[Message]):
    """The messages in order; the last is the response. ``beside``: values of the row for all messages, by name, which a chat
    template or processor gets unchanged: ``tools``, a list of JSON schemas. Usually empty."""

    def __init__(self, messages: Iterable[Message], **beside: Any) -> None:
        super().__init__(messages)
        self.beside: dict[str, Any] = {name: value for name, value in beside.items() if value is not None} if beside else {}


def is_asked(messages: Iterable[Message]) -> bool:
    """Return whether any message asks something. Without a question, an answer would be learned as a reply to the system
    message, or to nothing at all."""
    return any(message["role"] not in ASK_NOTHING and message["content"].strip() for message in messages)


def beside(messages: list[Message]) -> dict[str, Any]:
    """Return the values besides the messages; none for a plain list of messages."""
    return getattr(messages, "beside", {})
