"""Instruction data from a file to conversations on disk, and from there to token sequences."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xft_core.data.conversation import Message
from xft_core.data.conversations import Conversations, Sequences, Unusable, parse_messages
from xft_core.data.formats import Form, recognise
from xft_core.data.portions import BLANK, Portion
from xft_core.data.reader import Finder, Reader, numbered
from xft_core.data.sources import portions
from xft_core.data.tokenising import Tokeniser
from xft_core.data.tokenize import FAILED, RowMaker
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

FIRST_PORTIONS = 5  # by which the number of rows is estimated
# Rows are tokenised while they are read, and not afterwards those that are used, if not more than this many times as many.
READ_FOR_USED = 2


def read_conversations(config: DataConfig, path: Path | Sequence[Path] | None) -> Iterator[list[Message]]:
    """Conversations of the data file ``path``, or several (or of the Hub data set when None), each ending with the response.

    A row with an empty response gives an empty last message. Raises DataError for a file that cannot be read, a row of
    another form, and a row without a response.
    """
    form, found = _form_of(config, portions(config, path)[1])
    lines = 0
    unusable = Unusable() if config.unusable_rows == "drop" else None
    for portion in found:
        for number, messages in numbered(portion, form, lines, unusable):
            lines = number
            if messages:
                yield messages


def conversations_of(
    config: DataConfig, path: Path | Sequence[Path] | None, directory: Path, tokenizer: "PreTrainedTokenizerBase | None" = None,
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
    with nullcontext() if maker is None else Tokeniser(directory / "tokens", maker) as tokeniser:
        reader = Reader(directory, form, tokeniser, finder, Unusable() if config.unusable_rows == "drop" else None)
        for portion in every:
            reader.read(portion)
        return reader.done()


def sequences_of(
    conversations: Conversations, indices: np.ndarray, config: DataConfig, tokenizer: "PreTrainedTokenizerBase",
    directory: Path,
) -> tuple[Sequences, np.ndarray]:
    """Token sequences, and which of them is that of each of the conversations at these indices. Those that can be none are
    noted in ``conversations.unusable`` where the recipe says to drop them; else raises DataError, with their number."""
    maker = RowMaker(config, tokenizer)
    sequences = conversations.sequences
    if sequences is not None:
        places = indices
    else:
        places = np.arange(len(indices))
        with Tokeniser(directory / "used_tokens", maker) as tokeniser:
            for line in conversations.lines.read(indices):
                tokeniser.add(parse_messages(line), len(line))
            sequences = tokeniser.done()
    failed = indices[sequences.notes[places] == FAILED]
    for messages in conversations.at(failed if config.unusable_rows == "drop" else failed[:1]):
        try:
            maker.check(messages)
        except DataError as error:
            if config.unusable_rows == "drop":
                conversations.unusable.add(error)
                continue
            more = f" So it is with {len(failed):,} of {len(indices):,} rows; data.unusable_rows: drop leaves them out."
            raise DataError(f"{str(error).rstrip('.')}.{more if len(failed) > 1 else ''}") from None
    return sequences, places


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


def _maker(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> RowMaker | None:
    try:
        return RowMaker(config, tokenizer)
    except DataError:
        return None  # which is told once the data was read: what is wrong with that comes first
