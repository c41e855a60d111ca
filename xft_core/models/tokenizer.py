"""The tokenizer of a model directory."""

from pathlib import Path
from typing import TYPE_CHECKING

from xft_core.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory. Raises CheckpointError if it has none that works."""
    from transformers import AutoTokenizer  # takes a second, several with torch

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        tokenizer("x")  # some bad values in its files only appear in use
        return tokenizer
    except Exception as error:  # transformers raises a different type for each kind of missing file
        raise CheckpointError(f"{str(directory)!r} has no tokenizer that can be loaded: {first_line(error)}") from None
