"""Pieces of a file, readable by index in any order. Their positions are also in files: only the parts in use are in memory."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

READ_AT_ONCE = 4096


class Column:
    """Numbers of one type written sequentially to a file: N of them, or N times ``width``."""

    def __init__(self, path: Path, kind: type[np.number[Any]], width: int | None = None) -> None:
        self._path, self._kind, self._width = path, kind, width
        self._stream: BinaryIO = path.open("wb")

    def add(self, numbers: Any) -> None:
        """Append numbers."""
        self._stream.write(np.ascontiguousarray(numbers, dtype=self._kind).data)

    def done(self) -> np.ndarray:
        """Close the file and return all numbers (N,) or (N,width), mapped from the file."""
        self._stream.close()
        is_empty = self._path.stat().st_size == 0  # an empty file cannot be mapped
        numbers = np.zeros(0, dtype=self._kind) if is_empty else np.memmap(self._path, dtype=self._kind, mode="r")
        return numbers if self._width is None else numbers.reshape(-1, self._width)


@dataclass(frozen=True)
class Pieces:
    """N pieces of a file, with the offset (N, int64) and the size in bytes (N, int64) of each."""

    path: Path
    places: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, indices: np.ndarray) -> Iterator[bytes]:
        """Yield the pieces at these indices, in the order of the indices."""
        if not self.path.stat().st_size:
            yield from [b""] * len(indices)
            return
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for start in range(0, len(indices), READ_AT_ONCE):
                some = indices[start:start + READ_AT_ONCE]
                for place, size in zip(self.places[some].tolist(), self.sizes[some].tolist(), strict=True):
                    yield mapped[place:place + size]


class PieceWriter:
    """Writes a file of pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO = path.open("wb")
        self._end = 0
        self._places, self._sizes = (
            Column(path.with_name(f"{path.name}.{name}"), np.int64) for name in ("places", "sizes"))

    def write(self, pieces: Any, sizes: np.ndarray) -> None:
        """Append pieces that are already joined. ``sizes``: size of each in bytes."""
        self._stream.write(pieces)
        ends = self._end + np.cumsum(sizes, dtype=np.int64)
        self._places.add(ends - sizes)
        self._sizes.add(sizes)
        if len(ends):
            self._end = int(ends[-1])

    def done(self) -> Pieces:
        """Close the file and return all pieces."""
        self._stream.close()
        return Pieces(self.path, self._places.done(), self._sizes.done())
