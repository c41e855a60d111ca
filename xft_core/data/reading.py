"""Instruction data from a file to conversations on disk, and from there to token sequences."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.data.conversations import Conversations, Sequences
from xft_core.data.formats import Form, recognise
from xft_core.data.pieces import Pieces
from xft_core.data.portions import BLANK, Portion, portions
from xft_core.data.reader import Finder, Reader, Tokeniser, batches, numbered
from xft_core.data.templates import Message
from xft_core.data.tokenize import FAILED, RowMaker
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig

FIRST_PORTIONS = 5  # by which the number of rows is estimated
# Rows are tokenised while they are read, and not afterwards those that are used, if not more than this many times as many.
READ_FOR_USED = 2


def read_conversations(config: DataConfig, path: Path | None) -> Iterator[list[Message]]:
    """Conversations of the data file ``path`` (or of the Hub data set when None), each ending with the response.

    A row with an empty response gives an empty last message. Raises DataError for a file that cannot be read, a row of
    another form, and a row without a response.
    """
    form, found = _form_of(config, portions(config, path)[1])
    lines = 0
    for portion in found:
        for number, messages in numbered(portion, form, lines):
            lines = number
            if messages is not None:
                yield messages


def conversations_of(
    config: DataConfig, path: Path | None, directory: Path, tokenizer: PreTrainedTokenizerBase | None = None,
    finder: Finder | None = None,
) -> Conversations:
    """Read the data to ``directory``, and look for what ``finder`` finds.

    They are tokenised, too, where ``tokenizer`` is given and most of them are likely to be used. Raises DataError as
    ``read_conversations`` does.
    """
    total, every = portions(config, path)
    form, every = _form_of(config, every)
    first, every = _begin(every)
    size, rows = sum(portion.size for portion in first), sum(portion.count() for portion in first)
    maker = None
    if tokenizer is not None and first and (
            config.max_rows is None or READ_FOR_USED * config.max_rows >= total * rows / max(1, size)):
        maker = _maker(config, tokenizer)
    reader = Reader(directory, form, maker, finder)
    read: list[Conversations] = []
    before = row = kept = 0
    for portion in every:
        result = reader.read(portion)
        if result is None:  # a row that cannot be used: say where
            for _ in numbered(portion, form, before):
                pass
            raise AssertionError("a row that could not be read can be, the second time")
        part = result.part
        read.append(replace(part, numbers=part.numbers + row, found={kept + at: it for at, it in part.found.items()}))
        before, row, kept = before + result.lines, row + part.rows, kept + len(part)
    return Conversations(
        Pieces.together([part.lines for part in read], directory / "lines"), row,
        np.concatenate([np.zeros(0, dtype=np.int64), *(part.numbers for part in read)]),
        np.concatenate([np.zeros((0, 2), dtype=np.uint64), *(part.digests for part in read)]),
        {index: it for part in read for index, it in part.found.items()},
        None if maker is None else Sequences.together(
            [part.sequences for part in read if part.sequences], directory / "tokens"))


def sequences_of(
    conversations: Conversations, indices: np.ndarray, config: DataConfig, tokenizer: PreTrainedTokenizerBase, directory: Path,
) -> Sequences:
    """Token sequences of the conversations at these indices, in their order. Raises DataError for one that can be none."""
    maker = RowMaker(config, tokenizer)
    if conversations.sequences is not None:
        sequences = conversations.sequences.take(indices)
    else:
        tokeniser = Tokeniser(directory, maker)
        made = map(tokeniser.sequences, batches(conversations.lines.take(indices)))
        sequences = Sequences.together(list(made), directory / "used_tokens")
    for index in indices[sequences.notes == FAILED]:
        for messages in conversations.at(np.array([index])):
            maker.check(messages)
    return sequences


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


def _begin(every: Iterator[Portion]) -> tuple[list[Portion], Iterator[Portion]]:
    """The first portions, and all of them; what keeps others from being read is raised after these."""
    few: list[Portion] = []
    try:
        few += islice(every, FIRST_PORTIONS)
    except DataError as error:
        return few, chain(few, _raising(error))
    return few, chain(few, every)


def _raising(error: DataError) -> Iterator[Portion]:
    raise error
    yield


def _maker(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> RowMaker | None:
    try:
        return RowMaker(config, tokenizer)
    except DataError:
        return None  # which is told once the data was read: what is wrong with that comes first
