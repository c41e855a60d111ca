"""What reads the rows of instruction data, portion by portion."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xft_core.data.conversation import Message
from xft_core.data.conversations import DIGEST_BYTES, Conversations, Unusable, digest_of_line, line_of
from xft_core.data.formats import Form, conversation
from xft_core.data.pieces import Column, PieceWriter
from xft_core.data.portions import BLANK, Portion
from xft_core.data.tokenising import Tokeniser
from xft_core.errors import DataError

UNUSABLE: list[Message] = []  # in place of a row that cannot be used


class Finder(Protocol):
    """What looks for the problems of benchmark files."""

    def find_in(self, rows: list[list[str]]) -> dict[int, Any]:
        """What is found in rows (each a list of its texts), by index: a dataclass."""


class Reader:
    """Reads portions, one after the other, to files in ``directory``."""

    def __init__(
        self, directory: Path, form: Form | None, tokeniser: Tokeniser | None, finder: Finder | None,
        unusable: Unusable | None = None,
    ) -> None:
        self._lines = PieceWriter(directory / "lines")
        self._numbers = Column(directory / "numbers", np.int64)
        self._digests = Column(directory / "digests", np.uint8, DIGEST_BYTES)
        self._found: dict[int, Any] = {}
        self._form, self._tokeniser, self._finder = form, tokeniser, finder
        self._unusable = unusable  # where rows that cannot be used are noted; None: the first one is an error
        self._num_lines = self._num_rows = self._num_kept = 0

    def read(self, portion: Portion) -> None:
        """Read a portion. Raises DataError, with the place, for a row that cannot be used."""
        numbers: list[int] = []
        every: list[list[Message]] = []
        for line, messages in numbered(portion, self._form, self._num_lines, self._unusable):
            self._num_lines = line
            if messages is UNUSABLE:
                self._num_rows += 1
            elif messages is not None:
                if answers(messages):
                    numbers.append(self._num_rows)
                    every.append(messages)
                self._num_rows += 1
        written = [line_of(messages) for messages in every]
        sizes = list(map(len, written))
        self._lines.write(b"".join(written), np.array(sizes, dtype=np.int64))
        self._numbers.add(numbers)
        self._digests.add(np.frombuffer(
            b"".join([digest_of_line(line) for line in written]), dtype=np.uint8))
        if self._finder is not None:
            texts = [[message["content"] for message in messages] for messages in every]
            self._found |= {self._num_kept + index: asdict(it) for index, it in self._finder.find_in(texts).items()}
        self._num_kept += len(every)
        if self._tokeniser is not None:
            for messages, size in zip(every, sizes, strict=True):
                self._tokeniser.add(messages, size)

    def done(self) -> Conversations:
        """All that was read."""
        return Conversations(
            self._lines.done(), self._num_rows, self._numbers.done(), self._digests.done(), self._found,
            None if self._tokeniser is None else self._tokeniser.done(), self._unusable or Unusable())


def answers(messages: list[Message]) -> bool:
    """Whether a conversation's last message says anything."""
    return bool(messages[-1]["content"].strip() or messages[-1].get("tool_calls"))


def numbered(
    portion: Portion, form: Form | None, before: int, unusable: Unusable | None = None,
) -> Iterator[tuple[int, list[Message] | None]]:
    """The conversations of a portion, ``before`` which there are so many rows or lines: each with its number, counted
    likewise; None for a blank line. Rows that cannot be used are noted in ``unusable``, and are UNUSABLE; without it the first
    of them is raised as DataError, with the place."""
    for number, row in portion.rows(before):
        if row is BLANK:
            yield number, None
            continue
        messages = UNUSABLE
        try:
            if isinstance(row, DataError):
                raise row
            messages = conversation(row, form)
        except DataError as error:
            failure = error if error is row else DataError(f"{portion.place(number)}: {error}")
            if unusable is None:
                raise failure from None
            unusable.add(failure)
        yield number, messages
