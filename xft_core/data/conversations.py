"""Conversations and their token sequences on disk; in memory is what is looked at."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from xft_core.data.pieces import Pieces
from xft_core.data.templates import Message

SHARES = 16  # in which equal conversations are looked for, one after the other


@dataclass(frozen=True)
class Sequences:
    """Token sequences on disk (int32), in order. ``prompt_lengths`` and ``notes`` (N,): see tokenize.Made."""

    pieces: Pieces
    prompt_lengths: np.ndarray
    notes: np.ndarray

    def __len__(self) -> int:
        return len(self.pieces)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of those at these indices (len(indices), int64); 0 where there is no row."""
        sizes = np.asarray(self.pieces.sizes[indices])
        sizes //= 4
        return sizes

    def last_tokens(self, indices: np.ndarray) -> np.ndarray:
        """The last token of each of those at these indices (len(indices), int32), all of which are rows."""
        ends = self.pieces.places[indices] + self.pieces.sizes[indices]
        return np.memmap(self.pieces.path, dtype=np.int32, mode="r")[ends // 4 - 1]


@dataclass(frozen=True)
class Conversations:
    """The conversations of some data that have a response, as lines of JSON on disk.

    ``rows``: rows of the data. ``numbers`` (N,): of each conversation, which row it is, from 0. ``digests`` (N,16): of its
    text. ``found``: what was looked for and found in a conversation, by its index. ``sequences``: None if they were
    not tokenised.
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
        return map(parse_messages, self.lines.read(indices))

    def first_of_each(self) -> np.ndarray:
        """Whether each conversation is the first of those that are equal (N, bool)."""
        first = np.ones(len(self), dtype=bool)
        for share in range(SHARES):  # equal ones are in the same
            at = np.flatnonzero(self.digests[:, 0] % SHARES == share)
            digests = self.digests[at].view(np.uint64)
            order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal ones the first comes first
            in_order = digests[order]
            first[at[order[1:]]] = (in_order[1:] != in_order[:-1]).any(axis=1)
        return first

    def is_in(self, other: "Conversations", indices: np.ndarray) -> np.ndarray:
        """Whether each conversation at these indices is also one of the other's (len(indices), bool)."""
        known = {digest.tobytes() for digest in other.digests}
        return np.fromiter((self.digests[index].tobytes() in known for index in indices), dtype=bool, count=len(indices))


def line_of(messages: list[Message]) -> bytes:
    """``json.dumps({"messages": messages}, ensure_ascii=False)`` and a line break, in a quarter of the time."""
    written = ", ".join([
        f'{{"role": {encode_basestring(message["role"])}, "content": {encode_basestring(message["content"])}}}'
        for message in messages])
    return f'{{"messages": [{written}]}}\n'.encode()


def parse_messages(line: bytes) -> list[Message]:
    """The conversation that ``line_of`` wrote."""
    messages: list[Message] = json.loads(line)["messages"]
    return messages
