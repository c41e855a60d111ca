"""One conversation: what every form of row becomes."""

from collections.abc import Iterable
from typing import Any

Message = dict[str, Any]
"""``role`` and ``content`` (text), and of a call or an answer of a tool what chats.MORE_FIELDS has."""

PLAIN_TEXT = "plain text"  # role of the only message of a row that is not a conversation: all of it is learned
ASK_NOTHING = frozenset({"system", "developer", "assistant", "tool", "function"})  # roles


class Conversation(list[Message]):
    """The messages in order, of which the last is the response. ``beside``: what a row holds for all of them and a chat
    template or a processor is given as it is, by name: ``tools``, a list of JSON schemas. Empty for most."""

    def __init__(self, messages: Iterable[Message], **beside: Any) -> None:
        super().__init__(messages)
        self.beside: dict[str, Any] = {name: value for name, value in beside.items() if value is not None} if beside else {}


def is_asked(messages: Iterable[Message]) -> bool:
    """Whether any of the messages asks something. An answer after none that does would be learned as that to the system
    message, or to nothing at all."""
    return any(message["role"] not in ASK_NOTHING and message["content"].strip() for message in messages)


def beside(messages: list[Message]) -> dict[str, Any]:
    """What there is beside the messages; nothing for a plain list of them."""
    return getattr(messages, "beside", {})
