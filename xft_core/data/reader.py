"""What reads the rows of instruction data, portion by portion, in one process or several."""

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

UNUSABLE: list[Message] = []  # in place of a row that cannot be used


class Finder(Protocol):
    """What looks for the problems of benchmark files."""

    def find_in(self, rows: list[list[str]]) -> dict[int, Any]:
        """What is found in rows (each a list of its texts), by index: a dataclass."""


@dataclass(frozen=True)
class Content:
    """What a portion holds.

    ``lines``: how many rows or lines; ``begins_file``: see Portion. ``rows``: also those that say nothing or cannot be used
    (``unusable``). Of the K rows with a response: which row it is, from 0 (``numbers``, K); what ``line_of`` wrote, one
    after the other, and the bytes of each (``sizes``, K); their digests (16 K); what the finder found, by index; and their
    token sequences, if they are made already.
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
        """What ``of`` makes it of again."""
        counts = [self.lines, self.begins_file, self.rows, self.unusable, [*self.found.items()]]
        return [json.dumps(counts).encode(), self.numbers, self.written, self.sizes, self.digests,
                *(self.made.buffers() if self.made else ())]

    @classmethod
    def of(cls, buffers: Sequence[bytes]) -> "Content":
        """What another process found."""
        counts, numbers, written, sizes, digests, *made = buffers
        *counted, found = json.loads(counts)
        lines, begins_file, rows, unusable = counted
        return cls(
            lines, begins_file, rows, unusable, dict(found), np.frombuffer(numbers, np.int64), written,
            np.frombuffer(sizes, np.int64), digests, Made.of(made) if made else None)


class Reader:
    """Reads portions: rows of the form (None: of whatever form each is), what ``finder`` finds in them, and the token sequences
    that ``maker`` makes. Rows that cannot be used are left out (``drop``), or an error."""

    def __init__(self, form: Form | None, maker: RowMaker | None, finder: Finder | None, drop: bool) -> None:
        self._form, self._maker, self._finder, self._drop = form, maker, finder, drop
        self._noted = 0  # rows that cannot be used and that this process left to another one

    def read(self, portions: Portions, directory: Path, processes: int) -> Conversations:
        """All portions to files in ``directory``, by so many processes. Raises DataError, with the place, for what cannot be
        used."""
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
        """A portion's content for the process that writes. None if that must look itself: at long rows, of which it holds one
        at a time, and at rows that cannot be used, whose place it knows."""
        if portion.size > BATCH_CHARACTERS:
            return None
        content = self._content(portion, 0, Unusable())
        if content.unusable and self._noted < MOST_EXAMPLES:  # after that, no place is told
            self._noted += content.unusable
            return None
        return content.buffers()

    def _content(self, portion: Portion, before: int, unusable: Unusable) -> Content:
        """A portion's content, ``before`` which there are so many rows or lines; what cannot be used is noted."""
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
