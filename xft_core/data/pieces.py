"""Pieces of files, by index: what several processes wrote, found again in whatever order."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

READ_AT_ONCE = 4096


@dataclass(frozen=True)
class Pieces:
    """N pieces: of each the number of its file (N, uint16), its first byte (N, int64), and its bytes (N, int64). ``path`` is
    that of every file, less its number."""

    path: Path
    files: np.ndarray
    places: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, indices: np.ndarray) -> "Pieces":
        """The pieces at these indices, in their order."""
        return Pieces(self.path, self.files[indices], self.places[indices], self.sizes[indices])

    def read(self) -> Iterator[bytes]:
        """Every piece."""
        mapped: dict[int, mmap.mmap] = {}
        try:
            for start in range(0, len(self), READ_AT_ONCE):
                columns = (column[start:start + READ_AT_ONCE].tolist() for column in (self.files, self.places, self.sizes))
                for file, place, size in zip(*columns, strict=True):
                    if not size:
                        yield b""
                        continue
                    if file not in mapped:
                        with piece_file(self.path, file).open("rb") as stream:
                            mapped[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                    yield mapped[file][place:place + size]
        finally:
            for one in mapped.values():
                one.close()

    @staticmethod
    def together(parts: "list[Pieces]", path: Path) -> "Pieces":
        """The pieces of all, one after the other."""
        none = np.zeros(0, dtype=np.int64)
        return Pieces(path, *(
            np.concatenate([none.astype(kind), *(getattr(part, name) for part in parts)])
            for name, kind in (("files", np.uint16), ("places", np.int64), ("sizes", np.int64))))


class PieceWriter:
    """One of the files that pieces are in."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self._number = path, number
        self._stream: BinaryIO = piece_file(path, number).open("wb")
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
        pieces = Pieces(self.path, np.full(len(sizes), self._number, dtype=np.uint16), ends - sizes, sizes)
        self._place, self._written = int(ends[-1]) if len(ends) else self._place, []
        return pieces


def piece_file(path: Path, number: int) -> Path:
    """The file of that number."""
    return path.with_name(f"{path.name}.{number}")


def told_pieces(pieces: Pieces) -> list[Any]:
    """Pieces as JSON, for a process that reads them."""
    return [str(pieces.path), pieces.files.tolist(), pieces.places.tolist(), pieces.sizes.tolist()]


def pieces_told(told: list[Any]) -> Pieces:
    """The pieces of ``told_pieces``."""
    path, *columns = told
    return Pieces(Path(path), *(
        np.array(column, dtype=kind) for column, kind in zip(columns, (np.uint16, np.int64, np.int64), strict=True)))
