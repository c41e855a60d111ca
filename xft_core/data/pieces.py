"""Pieces of a file, by index: found again in whatever order."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

READ_AT_ONCE = 4096


@dataclass(frozen=True)
class Pieces:
    """N pieces of a file: of each its first byte (N, int64), and its bytes (N, int64)."""

    path: Path
    places: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, indices: np.ndarray) -> "Pieces":
        """The pieces at these indices, in their order."""
        return Pieces(self.path, self.places[indices], self.sizes[indices])

    def read(self) -> Iterator[bytes]:
        """Every piece."""
        if not self.sizes.any():
            yield from [b""] * len(self)
            return
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for start in range(0, len(self), READ_AT_ONCE):
                columns = (column[start:start + READ_AT_ONCE].tolist() for column in (self.places, self.sizes))
                for place, size in zip(*columns, strict=True):
                    yield mapped[place:place + size]

    @staticmethod
    def together(parts: "list[Pieces]", path: Path) -> "Pieces":
        """The pieces of all, one after the other."""
        none = np.zeros(0, dtype=np.int64)
        return Pieces(path, *(
            np.concatenate([none, *(getattr(part, name) for part in parts)]) for name in ("places", "sizes")))


class PieceWriter:
    """The file that pieces are in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO = path.open("wb")
        self._place = 0
        self._written: list[int] = []

    def write(self, piece: bytes) -> None:
        """One more piece."""
        self._stream.write(piece)
        self._written.append(len(piece))

    def write_all(self, pieces: Any, sizes: np.ndarray) -> None:
        """More pieces, which are one after the other already."""
        self._stream.write(pieces)
        self._written += sizes.tolist()

    def cut(self) -> Pieces:
        """The pieces that were written since the last time; they can be read."""
        self._stream.flush()
        sizes = np.array(self._written, dtype=np.int64)
        ends = self._place + np.cumsum(sizes)
        pieces = Pieces(self.path, ends - sizes, sizes)
        self._place, self._written = int(ends[-1]) if len(ends) else self._place, []
        return pieces
