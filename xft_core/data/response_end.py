"""The tokens that end a response in prepared data, so that generation stops where training taught the model to stop.
They are in response_end.json, see store/results/prepare.py.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from xft_core.errors import ArtifactError
from xft_core.store.results.prepare import ResponseEndFile

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def response_ends(last_tokens: Iterable[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that end responses, sorted, from the ``last_tokens`` of responses that were not truncated."""
    return sorted(token for token in set(last_tokens) if is_control_token(token, tokenizer))


def is_control_token(token: int, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether generation can stop at a token: the end-of-sequence token, or a token added to the vocabulary."""
    if token == tokenizer.eos_token_id:
        return True
    added = tokenizer.added_tokens_decoder.get(token)
    return added is not None and (added.special or bool(added.content.strip()))  # some tokenizers add runs of spaces


def save_response_ends(directory: Path, token_ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write response_end.json."""
    ResponseEndFile(token_ids=token_ids, tokens=tokenizer.convert_ids_to_tokens(token_ids)).write(directory)


def load_response_ends(directory: Path) -> list[int] | None:
    """Return the tokens that end a response in the prepared data in ``directory``; None for data of an earlier version.

    Raises ArtifactError for a file that cannot be read.
    """
    try:
        found = ResponseEndFile.read(directory)
    except ArtifactError:
        path = directory / ResponseEndFile.file_name
        raise ArtifactError(f"{str(path)!r} does not record which tokens end a response. Prepare the data again.") from None
    return found.token_ids if found else None

