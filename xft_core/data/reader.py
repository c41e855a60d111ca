"""Read the rows of instruction data, portion by portion, in one process or several."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xft_core.data.conversation import Message
from xft_core.data.conversations import (
    DIGEST_BYTES,
    MOST_EXAMPLES,
    Conversations,
    Unusable,
    digest_of_line,
    line_of,
)
from xft_core.data.formats import Form, check_asks, conversation
from xft_core.data.pieces import Column, PieceWriter
from xft_core.data.portions import BLANK, Portion, Portions
from xft_core.data.tokenising import SequenceWriter, make
from xft_core.data.tokenize import BATCH_CHARACTERS, Made, RowMaker
from xft_core.errors import DataError
from xft_core.runtime.shared_work import in_processes

UNUSABLE: list[Message] = []  # instead of a row that cannot be used


class Finder(Protocol):
    """Finds problems of benchmark files in the data."""

    def find_in(self, rows: list[list[str]]) -> dict[int, Any]:
        """Findings in rows (each a list of texts), by row index; every finding is a dataclass."""


@dataclass(frozen=True)
class Content:
    """The content of a portion.

    ``lines``: number of rows or lines; ``begins_file``: see Portion. ``rows``: number of rows, including rows with an empty
    response and unusable rows (``unusable``). For the K rows with a response: their row numbers from 0 (``numbers``, K); the
    joined output of ``line_of`` (``written``) with the size of each in bytes (``sizes``, K); their digests (16 K); the
    findings, by index (``found``); and their token sequences, if they exist already (``made``).
    """

    lines: int
    begins_file: bool
    rows: int
    unusable: int
    found: dict[int, Any]
    numbers: np.ndarray
    written: bytes
    sizes: np.ndarray
    digests: bytes
    made: Made | None

    def buffers(self) -> list[Any]:
        """Return the buffers from which ``of`` restores this object."""
        counts = [self.lines, self.begins_file, self.rows, self.unusable, [*self.found.items()]]
        return [json.dumps(counts).encode(), self.numbers, self.written, self.sizes, self.digests,
                *(self.made.buffers() if self.made else ())]

    @classmethod
    def of(cls, buffers: Sequence[bytes]) -> "Content":
        """Restore the content that another process read."""
        counts, numbers, written, sizes, digests, *made = buffers
        *counted, found = json.loads(counts)
        lines, begins_file, rows, unusable = counted
        return cls(
            lines, begins_file, rows, unusable, dict(found), np.frombuffer(numbers, np.int64), written,
            np.frombuffer(sizes, np.int64), digests, Made.of(made) if made else None)


class Reader:
    """Reads portions: rows of the given form (None: any form), the results of ``finder`` on them, and their token sequences
    from ``maker``. Rows that cannot be used are left out (``drop``) or raise an error."""

    def __init__(self, form: Form | None, maker: RowMaker | None, finder: Finder | None, drop: bool) -> None:
        self._form, self._maker, self._finder, self._drop = form, maker, finder, drop
        self._noted = 0  # unusable rows that this process left to the writing process

    def read(self, portions: Portions, directory: Path, processes: int) -> Conversations:
        """Read all portions to files in ``directory``, with the given number of processes. Raises DataError, with the location,
        for data that cannot be used."""
        lines, numbers, digests = (
            PieceWriter(directory / "lines"), Column(directory / "numbers", np.int64),
            Column(directory / "digests", np.uint8, DIGEST_BYTES))
        sequences = SequenceWriter(directory / "tokens") if self._maker else None
        found: dict[int, Any] = {}
        unusable = Unusable()
        num_lines = num_rows = num_kept = 0
        shared = in_processes(portions, self._elsewhere, processes)
        with closing(shared):
            for buffers, portion in shared:
                if portion is None:
                    content = Content.of(buffers)
                    unusable.count += content.unusable
                else:
                    content = self._content(portion, num_lines, unusable)
                lines.write(content.written, content.sizes)
                numbers.add(num_rows + content.numbers)
                digests.add(np.frombuffer(content.digests, dtype=np.uint8))
                found |= {num_kept + index: it for index, it in content.found.items()}
                if sequences and content.made:
                    sequences.write(content.made)
                num_lines = content.lines + (0 if content.begins_file else num_lines)
                num_rows += content.rows
                num_kept += len(content.numbers)
        return Conversations(
            lines.done(), num_rows, numbers.done(), digests.done(), found, sequences.done() if sequences else None, unusable)

    def _elsewhere(self, portion: Portion) -> list[Any] | None:
        """Return a portion's content for the writing process. None if the writing process must read the portion itself: for
        long rows, which it holds one at a time, and for unusable rows, because only it knows their location."""
        if portion.size > BATCH_CHARACTERS:
            return None
        content = self._content(portion, 0, Unusable())
        if content.unusable and self._noted < MOST_EXAMPLES:  # after that, no more locations are reported
            self._noted += content.unusable
            return None
        return content.buffers()

    def _content(self, portion: Portion, before: int, unusable: Unusable) -> Content:
        """Return a portion's content, and note unusable rows. ``before``: number of rows or lines before the portion."""
        begin = last = 0 if portion.begins_file else before
        noted, rows = unusable.count, 0
        numbers: list[int] = []
        conversations: list[list[Message]] = []
        for number, messages in numbered(portion, self._form, before, unusable if self._drop else None):
            last = number
            if messages is not None:
                if messages is not UNUSABLE and answers(messages):
                    numbers.append(rows)
                    conversations.append(messages)
                rows += 1
        written = [line_of(messages) for messages in conversations]
        sizes = list(map(len, written))
        found: dict[int, Any] = {}
        if self._finder is not None:
            texts = [[message["content"] for message in messages] for messages in conversations]
            found = {index: asdict(it) for index, it in self._finder.find_in(texts).items()}
        return Content(
            last - begin, portion.begins_file, rows, unusable.count - noted, found, np.array(numbers, dtype=np.int64),
            b"".join(written), np.array(sizes, dtype=np.int64), b"".join(map(digest_of_line, written)),
            None if self._maker is None else make(conversations, sizes, self._maker))


def answers(messages: list[Message]) -> bool:
    """Return whether a conversation's last message has any content."""
    return bool(messages[-1]["content"].strip() or messages[-1].get("tool_calls"))


def numbered(
    portion: Portion, form: Form | None, before: int, unusable: Unusable | None = None,
) -> Iterator[tuple[int, list[Message] | None]]:
    """Yield the conversations of a portion with their row or line numbers; None for a blank line.

    ``before``: number of rows or lines before the portion. Unusable rows are noted in ``unusable`` and yielded as UNUSABLE;
    without ``unusable``, the first of them raises DataError, with its location."""
    for number, row in portion.rows(before):
        if row is BLANK:
            yield number, None
            continue
        messages = UNUSABLE
        try:
            if isinstance(row, DataError):
                raise row
            read = conversation(row, form)
            if answers(read):
                check_asks(read)
            messages = read
        except DataError as error:
            failure = error if error is row else DataError(f"{portion.place(number)}: {error}")
            if unusable is None:
                raise failure from None
            unusable.add(failure)
        yield number, messages
