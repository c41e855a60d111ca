"""Write the token sequences of many conversations to files, batch by batch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xft_core.data.conversation import Message
from xft_core.data.conversations import Sequences
from xft_core.data.pieces import Column, PieceWriter
from xft_core.data.tokenize import BATCH, BATCH_CHARACTERS, Made, RowMaker
from xft_core.runtime.cores import cores

MOST_PROCESSES = 8  # that share the work: each takes memory, and more would wait for the writing process


def processes() -> int:
    """Return the number of processes that tokenise rows."""
    return min(cores(), MOST_PROCESSES)


def batches(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield the slices of conversations to tokenise at once. ``sizes``: approximate number of characters of each."""
    start = characters = 0
    for place, size in enumerate(sizes):
        if place > start and (place - start == BATCH or characters + size > BATCH_CHARACTERS):
            yield slice(start, place)
            start, characters = place, 0
        characters += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def make(conversations: Sequence[list[Message]], sizes: Sequence[int], maker: RowMaker) -> Made:
    """Return the rows of conversations. ``sizes``: approximate number of characters of each."""
    first, *others = [maker.make(conversations[some]) for some in batches(sizes)] or [maker.make([])]
    for made in others:
        first.input_ids.extend(made.input_ids)
    return Made(first.input_ids, *(
        np.concatenate(column) for column in zip(*(made.buffers()[1:] for made in (first, *others)), strict=True)))


class SequenceWriter:
    """Writes rows to files of ``path``, in the order of the calls."""

    def __init__(self, path: Path) -> None:
        self._tokens = PieceWriter(path)
        self._prompt_lengths = Column(path.with_name(f"{path.name}.prompt_lengths"), np.int32)
        self._notes = Column(path.with_name(f"{path.name}.notes"), np.uint16)

    def write(self, made: Made) -> None:
        """Append rows."""
        self._tokens.write(made.input_ids, 4 * made.lengths.astype(np.int64))
        self._prompt_lengths.add(made.prompt_lengths)
        self._notes.add(made.notes)

    def done(self) -> Sequences:
        """Close the files and return all rows."""
        return Sequences(self._tokens.done(), self._prompt_lengths.done(), self._notes.done())
