"""The tokenizer of a model directory."""

from pathlib import Path
from typing import TYPE_CHECKING

from xft_core.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory. Raises CheckpointError when it has none, or one that does not work."""
    from transformers import AutoTokenizer  # takes a second, and with torch several

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        tokenizer("x")  # some values in its files only show when it is used
        return tokenizer
    except Exception as error:  # transformers raises a different kind for every way in which files can be missing
        raise CheckpointError(f"{str(directory)!r} has no tokenizer that can be loaded: {first_line(error)}") from None
