"""Rows of many conversations, made by threads beside the one that reads: tokenizers compute without Python's lock."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from xft_core.data.conversation import Message
from xft_core.data.conversations import Sequences
from xft_core.data.pieces import Column, PieceWriter
from xft_core.data.tokenize import BATCH, BATCH_CHARACTERS, Made, RowMaker
from xft_core.runtime.cores import cores

AHEAD = 2  # batches that wait for each thread


class Tokeniser:
    """Writes rows to files of ``path`` in the order in which their conversations are added, however many threads there are.

    A context manager: at its end no thread is left.
    """

    def __init__(self, path: Path, maker: RowMaker) -> None:
        self._maker, self._tokens = maker, PieceWriter(path)
        self._prompt_lengths = Column(path.with_name(f"{path.name}.prompt_lengths"), np.int32)
        self._notes = Column(path.with_name(f"{path.name}.notes"), np.uint16)
        threads = cores() if maker.may_share else 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenise") if threads > 1 else None
        self._waiting: deque[Future[Made]] = deque()
        self._most_waiting = AHEAD * threads
        self._batch: list[list[Message]] = []
        self._size = 0  # characters of the batch

    def __enter__(self) -> "Tokeniser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def add(self, messages: list[Message], size: int) -> None:
        """One more conversation, which has about so many characters."""
        if self._batch and (len(self._batch) == BATCH or self._size + size > BATCH_CHARACTERS):
            self._hand_out()
        self._batch.append(messages)
        self._size += size

    def done(self) -> Sequences:
        """All rows."""
        if self._batch:
            self._hand_out()
        self._collect(0)
        return Sequences(self._tokens.done(), self._prompt_lengths.done(), self._notes.done())

    def _hand_out(self) -> None:
        texts, is_long = self._maker.texts(self._batch), self._size > BATCH_CHARACTERS
        self._batch, self._size = [], 0
        if self._pool is None:
            self._write(self._maker.rows(texts))
            return
        self._waiting.append(self._pool.submit(self._maker.rows, texts))
        self._collect(0 if is_long else self._most_waiting)  # long rows are in memory one at a time

    def _collect(self, most_waiting: int) -> None:
        while len(self._waiting) > most_waiting:
            self._write(self._waiting.popleft().result())

    def _write(self, made: Made) -> None:
        self._tokens.write(made.input_ids, 4 * made.lengths.astype(np.int64))
        self._prompt_lengths.add(made.prompt_lengths)
        self._notes.add(made.notes)
