"""Tokenised rows on disk: three flat tensors in one safetensors file, read without copying.

``input_ids`` holds the tokens of all rows in sequence. The first ``prompt_length`` tokens of a row are given and the rest are
learned, except tokens stored as -1 - token: these are given, after an answer that is learned (data.loss_on: all).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xft_core.data.pictures import Pictures
from xft_core.data.row_writing import Row
from xft_core.errors import DataError


class Rows:
    """The rows of one split, in order."""

    def __init__(
        self, input_ids: torch.Tensor, offsets: torch.Tensor, prompt_lengths: torch.Tensor, pictures: Pictures | None = None,
        numbers: list[int] | None = None,
    ) -> None:
        """``pictures``: pictures of the entire split; ``numbers``: these rows' numbers in it (default: in order)."""
        self._input_ids, self._offsets, self._prompt_lengths = input_ids, offsets.tolist(), prompt_lengths.tolist()
        self._pictures, self._numbers = pictures, numbers

    def __len__(self) -> int:
        return len(self._prompt_lengths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """``(input_ids, prompt_length)`` of one row; input_ids is int64, one dimension."""
        written_S = self._written(index)
        return torch.where(written_S < 0, -1 - written_S, written_S), self._prompt_lengths[index]

    def labels(self, index: int, ignored: int) -> torch.Tensor:
        """The learned tokens of one row (int64, one dimension), with ``ignored`` in place of the given tokens."""
        labels_S = self._written(index)
        labels_S[labels_S < 0] = ignored
        labels_S[:self._prompt_lengths[index]] = ignored
        return labels_S

    def _written(self, index: int) -> torch.Tensor:
        """A row's stored tokens, as a copy that callers may change."""
        return self._input_ids[self._offsets[index]:self._offsets[index + 1]].to(torch.long, copy=True)

    def pictures(self, indices: list[int], length: int) -> dict[str, torch.Tensor]:
        """The picture tensors of a batch of these rows, each a sequence of ``length`` tokens; empty without pictures."""
        if self._pictures is None:
            return {}
        return self._pictures.collate([self._number(index) for index in indices], length)

    def _number(self, index: int) -> int:
        return index if self._numbers is None else self._numbers[index]

    def part(self, number: int, parts: int, seed: int) -> "Rows":
        """Part ``number`` (from 1) of ``parts`` disjoint random parts of these rows, as equal in size as possible, in order.

        Raises DataError if there are fewer rows than parts.
        """
        if len(self) < parts:
            raise DataError(f"{len(self)} rows cannot be divided into {parts} parts. Use more rows or fewer parts.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self.select(sorted(order[number - 1::parts]))

    def first(self, number: int) -> "Rows":
        """The first ``number`` rows, or all if there are fewer."""
        return self.between(0, min(number, len(self)))

    def between(self, start: int, end: int) -> "Rows":
        """The rows from ``start`` up to but not including ``end``."""
        offsets = torch.tensor(self._offsets[start:end + 1])
        return Rows(self._input_ids[self._offsets[start]:self._offsets[end]], offsets - offsets[0],
                    torch.tensor(self._prompt_lengths[start:end]), self._pictures,
                    [self._number(index) for index in range(start, end)])

    def select(self, indices: Sequence[int]) -> "Rows":
        """The rows at these indices (at least one), in the order of the indices."""
        lengths = self.lengths()
        offsets = torch.tensor([0, *(lengths[index] for index in indices)]).cumsum(0)
        return Rows(torch.cat([self._input_ids[self._offsets[index]:self._offsets[index + 1]] for index in indices]), offsets,
                    torch.tensor([self._prompt_lengths[index] for index in indices]), self._pictures,
                    [self._number(index) for index in indices])

    def lengths(self) -> list[int]:
        """Number of tokens of every row."""
        return [end - start for start, end in zip(self._offsets, self._offsets[1:], strict=False)]

    def largest_token(self) -> int:
        """The largest token number in any row."""
        return int(torch.maximum(self._input_ids, -1 - self._input_ids).max())


def save_rows(path: Path, rows: list[Row]) -> None:
    """Write rows to one safetensors file."""
    save_file(_tensors(rows), path)


def rows_of(rows: list[Row]) -> Rows:
    """Return rows that exist only in memory."""
    return Rows(**_tensors(rows))


def _tensors(rows: list[Row]) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([0] + [len(row.input_ids) for row in rows], dtype=torch.int64)
    return {
        "input_ids": torch.cat([torch.tensor(row.input_ids, dtype=torch.int32) for row in rows]),
        "offsets": lengths.cumsum(0),
        "prompt_lengths": torch.tensor([row.prompt_length for row in rows], dtype=torch.int32)}


def load_rows(directory: Path, split: str) -> Rows:
    """Load the rows of ``split`` (train, held_out or reserved) of prepared data. Raises DataError if there are none, or rows
    that ``save_rows`` could not have written."""
    path = directory / f"{split}.safetensors"
    try:
        tensors = load_file(path)
        found = tensors["input_ids"], tensors["offsets"], tensors["prompt_lengths"]
    except (FileNotFoundError, SafetensorError, KeyError):
        raise DataError(f"{str(directory)!r} is not prepared data: it has no valid {path.name}. Run prepare first.") from None
    if not _are_rows(*found):
        raise DataError(f"{str(path)!r} holds no rows: its tensors are inconsistent. Run prepare again.")
    pictures = directory / f"{split}.pictures.safetensors"
    return Rows(*found, pictures=Pictures(pictures) if pictures.is_file() else None)


def _are_rows(input_ids: torch.Tensor, offsets: torch.Tensor, prompt_lengths: torch.Tensor) -> bool:
    """Return whether the offsets split all tokens into rows, with prompts that fit the rows and at least one response."""
    tensors = (input_ids, offsets, prompt_lengths)
    if any(item.ndim != 1 or item.dtype not in (torch.int32, torch.int64) or not len(item) for item in tensors) or (
            len(offsets) != len(prompt_lengths) + 1):
        return False
    lengths = offsets.diff()
    return bool(
        offsets[0] == 0 and offsets[-1] == len(input_ids) and (lengths > 0).all() and input_ids[offsets[:-1]].min() >= 0
        and (prompt_lengths >= 0).all() and (prompt_lengths <= lengths).all() and (prompt_lengths < lengths).any())
