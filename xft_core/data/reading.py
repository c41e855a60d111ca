"""Read instruction data from a file to conversations on disk, and turn these into token sequences."""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xft_core.data.conversation import Message
from xft_core.data.conversations import Conversations, Sequences, Unusable, parse_messages
from xft_core.data.formats import Form, recognise
from xft_core.data.portions import BLANK, Portion, Portions
from xft_core.data.reader import Finder, Reader, numbered
from xft_core.data.sources import portions
from xft_core.data.tokenising import SequenceWriter, batches, processes
from xft_core.data.tokenize import BATCH, BATCH_CHARACTERS, FAILED, Made, RowMaker
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig
from xft_core.runtime.shared_work import in_processes

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

FIRST_PORTIONS = 5  # portions from which the number of rows is estimated
# If there are at most this many times as many rows as will be used, all rows are tokenised while they are read. Otherwise only
# the used rows are tokenised, afterwards.
READ_FOR_USED = 2


def read_conversations(config: DataConfig, path: Path | Sequence[Path] | None) -> Iterator[list[Message]]:
    """Yield the conversations of the data file or files ``path`` (None: of the Hub data set), each ending with the response.

    A row with an empty response gives an empty last message. Raises DataError for a file that cannot be read, a row of
    another form, and a row without a response.
    """
    found = portions(config, path)[1]
    form, lines = _form_of(config, found), 0
    unusable = Unusable() if config.unusable_rows == "drop" else None
    for portion in found():
        for number, messages in numbered(portion, form, lines, unusable):
            lines = number
            if messages:
                yield messages


def conversations_of(
    config: DataConfig, path: Path | Sequence[Path] | None, directory: Path, tokenizer: "PreTrainedTokenizerBase | None" = None,
    finder: Finder | None = None,
) -> Conversations:
    """Read the data to ``directory``, and apply ``finder`` to it.

    The conversations are also tokenised if ``tokenizer`` is given and most of them are likely to be used. Raises DataError like
    ``read_conversations``.
    """
    total, found = portions(config, path)
    form, first = _form_of(config, found), _first(found)
    size, rows = sum(portion.size for portion in first), sum(portion.count() for portion in first)
    maker = None
    if tokenizer is not None and first and (
            config.max_rows is None or READ_FOR_USED * config.max_rows >= total * rows / max(1, size)):
        maker = _maker(config, tokenizer)
    reader = Reader(form, maker, finder, config.unusable_rows == "drop")
    return reader.read(found, directory, processes() if len(first) > 1 else 1)


def sequences_of(
    conversations: Conversations, indices: np.ndarray, config: DataConfig, tokenizer: "PreTrainedTokenizerBase",
    directory: Path,
) -> tuple[Sequences, np.ndarray]:
    """Return token sequences, and the position of each indexed conversation's sequence among them.

    Conversations that cannot be tokenised are noted in ``conversations.unusable`` if the recipe says to drop them. Otherwise
    raises DataError, with their number."""
    maker = RowMaker(config, tokenizer)
    sequences = conversations.sequences
    if sequences is not None:
        places = indices
    else:
        places = np.arange(len(indices))
        sequences = _sequences(conversations, indices, maker, directory / "used_tokens")
    failed = indices[sequences.notes[places] == FAILED]
    for messages in conversations.at(failed if config.unusable_rows == "drop" else failed[:1]):
        try:
            maker.check(messages)
        except DataError as error:
            if config.unusable_rows == "drop":
                conversations.unusable.add(error)
                continue
            more = f" This affects {len(failed):,} of {len(indices):,} rows; data.unusable_rows: drop leaves them out."
            raise DataError(f"{str(error).rstrip('.')}.{more if len(failed) > 1 else ''}") from None
    return sequences, places


def _sequences(conversations: Conversations, indices: np.ndarray, maker: RowMaker, path: Path) -> Sequences:
    """Tokenise the conversations at these indices, to files of ``path``."""
    sizes = conversations.lines.sizes[indices]
    written = SequenceWriter(path)

    def made(some: slice) -> Made:
        return maker.make([parse_messages(line) for line in conversations.lines.read(indices[some])])

    def elsewhere(some: slice) -> list[Any] | None:  # the writing process handles long rows one at a time
        return made(some).buffers() if sizes[some].sum() <= BATCH_CHARACTERS else None

    shared = in_processes(partial(batches, sizes), elsewhere, processes() if len(indices) > BATCH else 1)
    with closing(shared):
        for buffers, some in shared:
            written.write(Made.of(buffers) if some is None else made(some))
    return written.done()


def _form_of(config: DataConfig, found: Portions) -> Form | None:
    """Return the form of the rows, determined by the first row. None if that row cannot be read."""
    if config.format != "auto":
        return config.format
    try:
        for portion in found():
            first = next((row for _, row in portion.rows(0) if row is not BLANK), BLANK)
            if first is not BLANK:
                return recognise(first) if isinstance(first, dict) else None
    except DataError:
        pass  # reported when all rows are read
    return None


def _first(found: Portions) -> list[Portion]:
    """Return the first portions, up to one that cannot be read."""
    few: list[Portion] = []
    with suppress(DataError):
        few += islice(found(), FIRST_PORTIONS)
    return few


def _maker(config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> RowMaker | None:
    try:
        return RowMaker(config, tokenizer)
    except DataError:
        return None  # reported once the data is read: errors in the data come first
