"""Conversations on disk while they are sorted out: memory for a few numbers of each, whatever its length."""

import hashlib
import json
import mmap
from array import array
from pathlib import Path

import numpy as np

from xft_core.data.templates import Message

DIGEST_BYTES = 16


class Spool:
    """Conversations as lines of JSON in a file, by index, each with a digest of its text."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("w+b")
        self._places = array("q", [0])
        self._digests = bytearray()
        self._mapped: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._places) - 1

    def append(self, conversation: list[Message]) -> None:
        """One more conversation."""
        line = (json.dumps({"messages": conversation}, ensure_ascii=False) + "\n").encode()
        self._stream.write(line)
        self._places.append(self._places[-1] + len(line))
        self._digests += hashlib.blake2b(line, digest_size=DIGEST_BYTES).digest()

    def line(self, index: int) -> bytes:
        """A conversation's line."""
        if self._mapped is None or len(self._mapped) < self._places[-1]:
            self._stream.flush()
            self._mapped = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._mapped[self._places[index]:self._places[index + 1]]

    def conversation(self, index: int) -> list[Message]:
        """A conversation."""
        messages: list[Message] = json.loads(self.line(index))["messages"]
        return messages

    def close(self) -> None:
        """Let the file go."""
        if self._mapped is not None:
            self._mapped.close()
        self._stream.close()

    def digests(self) -> np.ndarray:
        """The digests of all, as two numbers each (N,2)."""
        return np.frombuffer(bytes(self._digests), dtype=np.uint64).reshape(-1, 2)

    def first_of_each(self) -> np.ndarray:
        """Whether each conversation is the first of those that are equal (N, bool)."""
        digests = self.digests()
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal ones the first comes first
        in_order = digests[order]
        first = np.ones(len(digests), dtype=bool)
        first[order[1:]] = (in_order[1:] != in_order[:-1]).any(axis=1)
        return first

    def is_in(self, other: "Spool") -> np.ndarray:
        """Whether each conversation is also one of the other's (N, bool)."""
        known = set(map(bytes, other.digests()))
        return np.fromiter((bytes(digest) in known for digest in self.digests()), dtype=bool, count=len(self))
