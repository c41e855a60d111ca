"""Tokenised rows to a file, without torch. Its form and who reads it: rows.py."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Row:
    """One example: its tokens, of which the first ``prompt_length`` are given and the rest are learned."""

    input_ids: list[int]
    prompt_length: int


def write_rows(path: Path, tokens: Iterable[bytes], lengths: np.ndarray, prompt_lengths: np.ndarray) -> None:
    """Write the file that ``rows.save_rows`` would write. ``tokens``: all rows' (int32), in whatever pieces; ``lengths`` and
    ``prompt_lengths`` (N,), in tokens."""
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
        assert stream.tell() == 8 + len(text) + place, "rows hold other numbers of tokens than their lengths say"
