"""The tensors that a model's own processor creates from pictures, in addition to the tokens of prepared rows.

A file <split>.pictures.safetensors holds the processor's tensors for every distinct set of pictures, as ``SET.NAME`` (all
except input_ids and attention_mask), and the set number of every row. Tensors with names that end in token_type_ids mark the
picture tokens of a row (shape 1,S). The first dimension of all others has one entry for each picture, or for each row.
Shape suffixes: N rows, B rows of a batch, S tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xft_core.errors import DataError

OF_TOKENS = "token_type_ids"  # name suffix of tensors with one number for each token
ROWS = "set_of_row"


class Pictures:
    """The pictures of one split's rows, read on demand."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that ``save_pictures`` could not have written."""
        try:
            self._file = safe_open(path, framework="pt").__enter__()
            self._sets: list[int] = self._file.get_tensor(ROWS).tolist()
        except (SafetensorError, OSError) as error:
            raise DataError(f"{str(path)!r} is not a complete file of pictures: {error}. Run prepare again.") from None
        self._names: dict[int, list[str]] = {}
        for name in self._file.keys():
            if name != ROWS:
                number, _, inner = name.partition(".")
                self._names.setdefault(int(number), []).append(inner)
        self._of_tokens = sorted({name for names in self._names.values() for name in names if name.endswith(OF_TOKENS)})

    def __len__(self) -> int:
        return len(self._sets)

    def of_row(self, row: int) -> dict[str, torch.Tensor]:
        """The processor's tensors of one row."""
        number = self._sets[row]
        return {name: self._file.get_tensor(f"{number}.{name}") for name in self._names.get(number, [])}

    def collate(self, rows: Sequence[int], length: int) -> dict[str, torch.Tensor]:
        """Return the tensors for the rows of a batch: joined along the first dimension, padded with zeros along the others.
        Tensors of tokens are B,S with ``length`` tokens."""
        found = [self.of_row(row) for row in rows]
        batch = {}
        for name in self._of_tokens:
            nothing = torch.zeros(1, length, dtype=torch.int64)
            batch[name] = torch.cat([_padded(item[name], [length]) if name in item else nothing for item in found])
        for name in sorted({name for item in found for name in item} - set(self._of_tokens)):
            parts = [item[name] for item in found if name in item]
            sizes = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
            batch[name] = torch.cat([_padded(part, sizes) for part in parts])
        return batch


def save_pictures(path: Path, sets: Sequence[dict[str, torch.Tensor]], set_of_row: Sequence[int]) -> None:
    """Write the file that ``Pictures`` reads: the tensors of every set, and the set number of every row."""
    tensors = {f"{number}.{name}": tensor.contiguous() for number, item in enumerate(sets) for name, tensor in item.items()}
    save_file(tensors | {ROWS: torch.tensor(set_of_row, dtype=torch.int64)}, path)


def _padded(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Pad every dimension but the first with trailing zeros up to ``sizes``; entries beyond are cut."""
    missing = [size - found for size, found in zip(sizes, tensor.shape[1:], strict=True)]
    padding = [place for number in reversed(missing) for place in (0, number)]
    return F.pad(tensor, padding) if any(padding) else tensor
