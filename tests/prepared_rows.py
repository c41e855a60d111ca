"""Prepared rows for tests that need no prepare stage."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from xft_core.data.row_writing import Row


def save_rows(path: Path, rows: list[Row]) -> None:
    """Write the file that prepare writes, with the library of safetensors."""
    lengths = torch.tensor([0] + [len(row.input_ids) for row in rows], dtype=torch.int64)
    save_file({
        "input_ids": torch.cat([torch.tensor(row.input_ids, dtype=torch.int32) for row in rows]),
        "offsets": lengths.cumsum(0),
        "prompt_lengths": torch.tensor([row.prompt_length for row in rows], dtype=torch.int32)}, path)
