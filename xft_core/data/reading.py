"""Instruction data from a file to conversations on disk, and from there to token sequences, by one process or several.

What is in memory of a conversation are some 60 bytes, whatever its length. The result does not depend on the number of
processes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from json.encoder import encode_basestring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.data.formats import Form, conversation, recognise
from xft_core.data.pieces import Pieces, PieceWriter
from xft_core.data.portions import BLANK, Portion, portions
from xft_core.data.templates import Message
from xft_core.data.tokenize import BATCH, BATCH_CHARACTERS, FAILED, RowMaker
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig
from xft_core.runtime.workers import cores, in_order

DIGEST_BYTES = 16
FEW_PORTIONS = 4  # up to so many are read in this process: to start others would take longer
# Rows are tokenised while they are read, and not afterwards those that are used, if not more than this many times as many.
READ_FOR_USED = 2


@dataclass(frozen=True)
class Sequences:
    """Token sequences on disk (int32), in order. ``prompt_lengths`` and ``notes`` (N,): see tokenize.Made."""

    pieces: Pieces
    prompt_lengths: np.ndarray
    notes: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each (N,); 0 where there is no row."""
        return self.pieces.sizes // 4

    def take(self, indices: np.ndarray) -> "Sequences":
        """Those at these indices, in their order."""
        return Sequences(self.pieces.take(indices), self.prompt_lengths[indices], self.notes[indices])

    @staticmethod
    def together(parts: "list[Sequences]", path: Path) -> "Sequences":
        """Those of all parts, one after the other."""
        return Sequences(
            Pieces.together([part.pieces for part in parts], path),
            *(np.concatenate([np.zeros(0, dtype=kind), *(getattr(part, name) for part in parts)])
              for name, kind in (("prompt_lengths", np.int32), ("notes", np.uint16))))


@dataclass(frozen=True)
class Conversations:
    """The conversations of some data that have a response, as lines of JSON on disk.

    ``rows``: rows of the data. ``numbers`` (N,): of each conversation, which row it is, from 0. ``digests`` (N,2): of its
    text. ``found``: what ``find`` found in a conversation, by its index. ``sequences``: None if they were not tokenised.
    """

    lines: Pieces
    rows: int
    numbers: np.ndarray
    digests: np.ndarray
    found: dict[int, Any]
    sequences: Sequences | None

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, indices: np.ndarray) -> Iterator[list[Message]]:
        """The conversations at these indices, in their order."""
        return map(_messages, self.lines.take(indices).read())

    def first_of_each(self) -> np.ndarray:
        """Whether each conversation is the first of those that are equal (N, bool)."""
        order = np.lexsort((self.digests[:, 1], self.digests[:, 0]))  # stable: of equal ones the first comes first
        in_order = self.digests[order]
        first = np.ones(len(self.digests), dtype=bool)
        first[order[1:]] = (in_order[1:] != in_order[:-1]).any(axis=1)
        return first

    def is_in(self, other: "Conversations") -> np.ndarray:
        """Whether each conversation is also one of the other's (N, bool)."""
        known = set(map(bytes, other.digests))
        return np.fromiter((bytes(digest) in known for digest in self.digests), dtype=bool, count=len(self))


@dataclass(frozen=True)
class _Read:
    """What a portion has: its rows and lines, and what Conversations has of it."""

    lines: int
    part: Conversations


def read_conversations(config: DataConfig, path: Path | None) -> Iterator[list[Message]]:
    """Conversations of the data file ``path`` (or of the Hub data set when None), each ending with the response.

    A row with an empty response gives an empty last message. Raises DataError for a file that cannot be read, a row of
    another form, and a row without a response.
    """
    form, found = _form_of(config, portions(config, path)[1])
    lines = 0
    for portion in found:
        for number, messages in _numbered(portion, form, lines):
            lines = number
            if messages is not None:
                yield messages


def conversations_of(
    config: DataConfig, path: Path | None, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None,
    find: Callable[[list[str]], Any] | None = None, processes: int | None = None,
) -> Conversations:
    """Read the data to ``directory``.

    They are tokenised, too, where ``tokenizer`` is given and most of them are likely to be used. ``find``: given the texts
    of a conversation, what is to be known of it, or None. Raises DataError as ``read_conversations`` does.
    """
    total, every = portions(config, path)
    form, every = _form_of(config, every)
    few, every = _begin(every)
    if len(few) <= FEW_PORTIONS:
        processes = 1
    maker = None
    if tokenizer is not None and few and (config.max_rows is None or READ_FOR_USED * config.max_rows >= _rows(few, total)):
        maker = _maker(config, tokenizer)
    start = partial(_reader, form=form, directory=directory, maker=maker, find=find)
    read: list[Conversations] = []
    before = rows = kept = 0
    with closing(in_order(start, every, processes or _processes())) as results:
        for portion, result in results:
            if result is None:  # a row that cannot be used: say where
                for _ in _numbered(portion, form, before):
                    pass
                raise AssertionError("a row that could not be read can be, the second time")
            part = result.part
            read.append(replace(part, numbers=part.numbers + rows, found={kept + at: it for at, it in part.found.items()}))
            before, rows, kept = before + result.lines, rows + part.rows, kept + len(part)
    lines, tokens = directory / "lines", directory / "tokens"
    return Conversations(
        Pieces.together([part.lines for part in read], lines), rows,
        np.concatenate([np.zeros(0, dtype=np.int64), *(part.numbers for part in read)]),
        np.concatenate([np.zeros((0, 2), dtype=np.uint64), *(part.digests for part in read)]),
        {index: it for part in read for index, it in part.found.items()},
        None if maker is None else Sequences.together([part.sequences for part in read if part.sequences], tokens))


def sequences_of(
    conversations: Conversations, indices: np.ndarray, config: DataConfig, tokenizer: PreTrainedTokenizerBase, directory: Path,
) -> Sequences:
    """Token sequences of the conversations at these indices, in their order. Raises DataError for one that can be none."""
    maker = RowMaker(config, tokenizer)
    if conversations.sequences is not None:
        sequences = conversations.sequences.take(indices)
    else:
        lines = conversations.lines.take(indices)
        batches = list(_batches(lines))
        start = partial(_tokeniser, directory=directory, maker=maker)
        with closing(in_order(start, batches, _processes() if len(batches) > FEW_PORTIONS else 1)) as results:
            sequences = Sequences.together([result for _, result in results], directory / "used_tokens")
    for index in indices[sequences.notes == FAILED]:
        for messages in conversations.at(np.array([index])):
            maker.check(messages)
    return sequences


def _reader(
    process: int, form: Form | None, directory: Path, maker: RowMaker | None, find: Callable[[list[str]], Any] | None,
) -> Callable[[Portion], _Read | None]:
    lines, tokens = PieceWriter(directory / "lines", process), PieceWriter(directory / "tokens", process)

    def read(portion: Portion) -> _Read | None:
        try:
            return _read(portion, form, lines, tokens, maker, find)
        except DataError:
            return None

    return read


def _read(
    portion: Portion, form: Form | None, lines: PieceWriter, tokens: PieceWriter, maker: RowMaker | None,
    find: Callable[[list[str]], Any] | None,
) -> _Read:
    lines_read = rows = kept = 0
    numbers: list[int] = []
    digests, found, made = bytearray(), {}, []
    batch: list[list[Message]] = []
    size = 0
    for lines_read, messages in _numbered(portion, form, 0):  # noqa: B007
        if messages is None:
            continue
        rows += 1
        texts = [message["content"] for message in messages]
        if not texts[-1].strip():
            continue
        if find is not None and (it := find(texts)) is not None:
            found[kept] = it
        line = _line(messages)
        lines.write(line)
        digests += hashlib.blake2b(line, digest_size=DIGEST_BYTES).digest()
        numbers.append(rows - 1)
        kept += 1
        if maker is None:
            continue
        batch.append(messages)
        size += len(line)
        if len(batch) == BATCH or size > BATCH_CHARACTERS:
            made.append(_made(batch, maker, tokens))
            batch, size = [], 0
    if batch and maker is not None:
        made.append(_made(batch, maker, tokens))
    pieces = lines.cut()
    return _Read(lines_read, Conversations(
        pieces, rows, np.array(numbers, dtype=np.int64),
        np.frombuffer(bytes(digests), dtype=np.uint64).reshape(-1, 2), found,
        None if maker is None else Sequences.together(made, pieces.path)))


def _tokeniser(process: int, directory: Path, maker: RowMaker) -> Callable[[Pieces], Sequences]:
    tokens = PieceWriter(directory / "used_tokens", process)
    return lambda lines: _made(list(map(_messages, lines.read())), maker, tokens)


def _made(batch: list[list[Message]], maker: RowMaker, tokens: PieceWriter) -> Sequences:
    made = maker.make(batch)
    tokens.write_all(made.input_ids, 4 * made.lengths)
    return Sequences(tokens.cut(), made.prompt_lengths, made.notes)


def _batches(lines: Pieces) -> Iterator[Pieces]:
    start, ends = 0, np.cumsum(lines.sizes)
    while start < len(lines):
        before = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, before + BATCH_CHARACTERS, side="right"))
        end = min(max(end, start + 1), start + BATCH)
        yield lines.take(np.arange(start, end))
        start = end


def _numbered(portion: Portion, form: Form | None, before: int) -> Iterator[tuple[int, list[Message] | None]]:
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


def _form_of(config: DataConfig, every: Iterator[Portion]) -> tuple[Form | None, Iterator[Portion]]:
    """The form of the rows, which the first one shows, and the same portions again. None where that row cannot be read."""
    if config.format != "auto":
        return config.format, every
    form, looked_at = None, []
    for portion in every:
        looked_at.append(portion)
        try:
            first = next((row for _, row in portion.rows(0) if row is not BLANK), BLANK)
            form = recognise(first) if isinstance(first, dict) else None
        except DataError:
            break
        if first is not BLANK:
            break
    return form, chain(looked_at, every)


def _processes() -> int:
    """Processes that share the work: one, unless XFT_PREPARE_PROCESSES allows more, and never more than cores.

    A process forked from one with threads of other libraries was seen to hang (in the tests), for a reason not found yet.
    """
    allowed = os.environ.get("XFT_PREPARE_PROCESSES", "1")
    return min(cores(), max(1, int(allowed))) if allowed.isascii() and allowed.isdecimal() and len(allowed) < 4 else 1


def _begin(every: Iterator[Portion]) -> tuple[list[Portion], Iterator[Portion]]:
    """The first portions, and all of them; what keeps others from being read is raised after these."""
    few: list[Portion] = []
    try:
        few += islice(every, FEW_PORTIONS + 1)
    except DataError as error:
        return few, chain(few, _raising(error))
    return few, chain(few, every)


def _raising(error: DataError) -> Iterator[Portion]:
    raise error
    yield


def _rows(few: list[Portion], total: int) -> float:
    """About how many rows the data has, by its first portions."""
    return total * sum(portion.count() for portion in few) / max(1, sum(portion.size for portion in few))


def _maker(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> RowMaker | None:
    try:
        return RowMaker(config, tokenizer)
    except DataError:
        return None  # which is told once the data was read: what is wrong with that comes first


def _line(messages: list[Message]) -> bytes:
    """``json.dumps({"messages": messages}, ensure_ascii=False)`` and a line break, in a quarter of the time."""
    written = ", ".join([
        f'{{"role": {encode_basestring(message["role"])}, "content": {encode_basestring(message["content"])}}}'
        for message in messages])
    return f'{{"messages": [{written}]}}\n'.encode()


def _messages(line: bytes) -> list[Message]:
    messages: list[Message] = json.loads(line)["messages"]
    return messages
