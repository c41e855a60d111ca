"""Conversations and their token sequences on disk; only the parts in use are in memory."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from json.encoder import encode_basestring  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from xft_core.data.conversation import Conversation, Message, beside
from xft_core.data.pieces import Pieces
from xft_core.errors import DataError

DIGEST_BYTES = 16
MOST_EXAMPLES = 20
SHARES = 16  # parts in which equal conversations are looked for, one after the other


@dataclass(frozen=True)
class Sequences:
    """Token sequences on disk (int32), in order. ``prompt_lengths`` and ``notes`` (N,): see tokenize.Made."""

    pieces: Pieces
    prompt_lengths: np.ndarray
    notes: np.ndarray

    def __len__(self) -> int:
        return len(self.pieces)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of tokens of the sequences at these indices (len(indices), int64); 0 if there is no row."""
        sizes = np.asarray(self.pieces.sizes[indices])
        sizes //= 4
        return sizes

    def last_tokens(self, indices: np.ndarray) -> np.ndarray:
        """The last token of each sequence at these indices (len(indices), int32), all of which must be rows."""
        ends = self.pieces.places[indices] + self.pieces.sizes[indices]
        return np.memmap(self.pieces.path, dtype=np.int32, mode="r")[ends // 4 - 1]


@dataclass
class Unusable:
    """Rows that cannot be used: their number, and error messages with locations for some of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(str(error)[:1000])


@dataclass(frozen=True)
class Conversations:
    """The conversations of some data that have a response, as lines of JSON on disk.

    ``rows``: number of rows in the data. ``numbers`` (N,): row number of each conversation, from 0. ``digests`` (N,16): digests
    of the conversations' texts. ``found``: the finder's results for conversations, by index. ``sequences``: None if the
    conversations were not tokenised. ``unusable``: rows that are left out because they cannot be read.
    """

    lines: Pieces
    rows: int
    numbers: np.ndarray
    digests: np.ndarray
    found: dict[int, Any]
    sequences: Sequences | None
    unusable: Unusable

    def __len__(self) -> int:
        return len(self.lines)

    def at(self, indices: np.ndarray) -> Iterator[list[Message]]:
        """The conversations at these indices, in the order of the indices."""
        return map(parse_messages, self.lines.read(indices))

    def first_of_each(self) -> np.ndarray:
        """Whether each conversation is the first among equal ones (N, bool)."""
        return first_of_each(self.digests)

    def is_in(self, other: "Conversations", indices: np.ndarray) -> np.ndarray:
        """Whether each conversation at these indices is also in ``other`` (len(indices), bool)."""
        known = {digest.tobytes() for digest in other.digests}
        return np.fromiter((self.digests[index].tobytes() in known for index in indices), dtype=bool, count=len(indices))


def first_of_each(digests_ND: np.ndarray) -> np.ndarray:
    """Return whether each digest (N,16) is the first among equal ones (N, bool)."""
    first = np.ones(len(digests_ND), dtype=bool)
    for share in range(SHARES):  # equal digests are in the same share
        at = np.flatnonzero(digests_ND[:, 0] % SHARES == share)
        digests = np.ascontiguousarray(digests_ND[at]).view(np.uint64)
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal digests keep their order
        in_order = digests[order]
        first[at[order[1:]]] = (in_order[1:] != in_order[:-1]).any(axis=1)
    return first


def digest_of_line(line: bytes) -> bytes:
    """Return the digest that identifies a conversation, from the line that ``line_of`` wrote."""
    return hashlib.blake2b(line, digest_size=DIGEST_BYTES).digest()


def line_of(messages: list[Message]) -> bytes:
    """Return ``json.dumps({"messages": messages}, ensure_ascii=False)`` with a line break, in a quarter of the time. Includes
    the values besides the messages."""
    more = beside(messages)
    if more or any([len(message) > 2 for message in messages]):
        return json.dumps({"messages": messages, **more}, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
    written = ", ".join([
        f'{{"role": {encode_basestring(message["role"])}, "content": {encode_basestring(message["content"])}}}'
        for message in messages])
    return f'{{"messages": [{written}]}}\n'.encode()


def parse_messages(line: bytes) -> Conversation:
    """Return the conversation that ``line_of`` wrote."""
    row = json.loads(line)
    return Conversation(row.pop("messages"), **row)
