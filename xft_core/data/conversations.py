"""Conversations and their token sequences on disk; in memory are some 60 bytes of each, whatever its length."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import numpy as np

from xft_core.data.pieces import Pieces
from xft_core.data.templates import Message


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
        return map(parse_messages, self.lines.take(indices).read())

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
