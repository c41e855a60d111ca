"""What reads a portion of the data and makes rows of it."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xft_core.data.conversations import Conversations, Sequences, line_of, parse_messages
from xft_core.data.formats import Form, conversation
from xft_core.data.pieces import Pieces, PieceWriter
from xft_core.data.portions import BLANK, Portion
from xft_core.data.templates import Message
from xft_core.data.tokenize import BATCH, BATCH_CHARACTERS, RowMaker
from xft_core.errors import DataError

DIGEST_BYTES = 16


class Finder(Protocol):
    """What looks for the problems of benchmark files."""

    def find_in(self, rows: list[list[str]]) -> dict[int, Any]:
        """What is found in rows (each a list of its texts), by index: a dataclass."""


@dataclass(frozen=True)
class Read:
    """What a portion has: its rows and lines, and what Conversations has of it."""

    lines: int
    part: Conversations


class Reader:
    """Reads portions, one after the other, to files in ``directory``."""

    def __init__(self, directory: Path, form: Form | None, maker: RowMaker | None, finder: Finder | None) -> None:
        self._lines, self._tokens = (PieceWriter(directory / name) for name in ("lines", "tokens"))
        self._form, self._maker, self._finder = form, maker, finder

    def read(self, portion: Portion) -> Read | None:
        """What the portion has; None if a row of it cannot be used, which ``numbered`` says more of."""
        lines = rows = 0
        numbers: list[int] = []
        every: list[list[Message]] = []
        try:
            for lines, messages in numbered(portion, self._form, 0):  # noqa: B007
                if messages is not None:
                    if messages[-1]["content"].strip():
                        numbers.append(rows)
                        every.append(messages)
                    rows += 1
        except DataError:
            return None
        written = [line_of(messages) for messages in every]
        for line in written:
            self._lines.write(line)
        digests = b"".join([hashlib.blake2b(line, digest_size=DIGEST_BYTES).digest() for line in written])
        found: dict[int, Any] = {}
        if self._finder is not None:
            texts = [[message["content"] for message in messages] for messages in every]
            found = {index: asdict(it) for index, it in self._finder.find_in(texts).items()}
        pieces = self._lines.cut()
        sequences = None
        if self._maker is not None:
            made = [_made(every[part], self._maker, self._tokens) for part in _parts(list(map(len, written)))]
            sequences = Sequences.together(made, self._tokens.path)
        return Read(lines, Conversations(
            pieces, rows, np.array(numbers, dtype=np.int64), np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2), found,
            sequences))


class Tokeniser:
    """Makes rows of conversations that were read."""

    def __init__(self, directory: Path, maker: RowMaker) -> None:
        self._tokens, self._maker = PieceWriter(directory / "used_tokens"), maker

    def sequences(self, lines: Pieces) -> Sequences:
        """Those of the conversations with these lines."""
        return _made(list(map(parse_messages, lines.read())), self._maker, self._tokens)


def batches(lines: Pieces) -> Iterator[Pieces]:
    """As many lines as are tokenised at once, and so on."""
    for part in _parts(lines.sizes.tolist()):
        yield lines.take(np.arange(part.start, part.stop))


def _parts(sizes: list[int]) -> Iterator[slice]:
    start = size = 0
    for place, more in enumerate(sizes):
        if place > start and (place - start == BATCH or size + more > BATCH_CHARACTERS):
            yield slice(start, place)
            start, size = place, 0
        size += more
    if sizes:
        yield slice(start, len(sizes))


def _made(batch: list[list[Message]], maker: RowMaker, tokens: PieceWriter) -> Sequences:
    made = maker.make(batch)
    tokens.write_all(made.input_ids, 4 * made.lengths)
    return Sequences(tokens.cut(), made.prompt_lengths, made.notes)


def numbered(portion: Portion, form: Form | None, before: int) -> Iterator[tuple[int, list[Message] | None]]:
    """The conversations of a portion, ``before`` which there are so many rows or lines: each with its number, counted
    likewise; None for a blank line. Raises DataError, with the place."""
    for number, row in portion.rows(before):
        if row is BLANK:
            yield number, None
            continue
        try:
            messages = conversation(row, form)
        except DataError as error:
            raise DataError(f"{portion.place(number)}: {error}") from None
        yield number, messages
