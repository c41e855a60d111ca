"""Write tokenised rows to a file, without torch. rows.py describes the format and reads it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xft_core.errors import DataError


@dataclass(frozen=True)
class WrittenRows:
    """Rows in a file, as ``write_rows`` wrote them; only the parts in use are in memory. ``offsets`` (N+1), ``input_ids`` (all
    rows' tokens), ``prompt_lengths`` (N,)."""

    offsets: np.ndarray
    input_ids: np.ndarray
    prompt_lengths: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "WrittenRows":
        """Map the rows of a file. Raises DataError for an incomplete file."""
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
            kinds = {"I64": np.int64, "I32": np.int32}
            return cls(**{
                name: np.memmap(path, kinds[header[name]["dtype"]], "r", 8 + size + header[name]["data_offsets"][0],
                                tuple(header[name]["shape"]))
                for name in ("offsets", "input_ids", "prompt_lengths")})
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{str(path)!r} holds no rows. Run prepare again.") from None

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def tokens(self, index: int) -> bytes:
        """A row's tokens, as stored in the file."""
        return self.input_ids[self.offsets[index]:self.offsets[index + 1]].tobytes()


@dataclass(frozen=True)
class Row:
    """One example: its tokens. The first ``prompt_length`` are given, the rest are learned."""

    input_ids: list[int]
    prompt_length: int


def write_rows(path: Path, tokens: Iterable[bytes], lengths: np.ndarray, prompt_lengths: np.ndarray) -> None:
    """Write the file that ``rows.save_rows`` would write. ``tokens``: tokens of all rows (int32), in pieces of any size;
    ``lengths`` and ``prompt_lengths`` (N,), in tokens."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    header, place = {}, 0
    tensors = (
        ("offsets", "I64", len(lengths) + 1, 8), ("input_ids", "I32", int(offsets[-1]), 4),
        ("prompt_lengths", "I32", len(lengths), 4))
    for name, kind, size, width in tensors:
        header[name] = {"dtype": kind, "shape": [size], "data_offsets": [place, place + width * size]}
        place += width * size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.write(offsets.data)
        stream.writelines(tokens)
        stream.write(np.ascontiguousarray(prompt_lengths, dtype=np.int32).data)
        assert stream.tell() == 8 + len(text) + place, "the rows' numbers of tokens differ from their lengths"
