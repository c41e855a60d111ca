"""The tokenizer of a model directory.

transformers takes a tokenizer's class, and with it the way it splits text, from the model type as well as from the tokenizer's
files: those of a llama split text in another way next to the config.json of a granite mixture. An upcycled model and its
exports must give the tokens of the dense model, which they were tuned with.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.errors import CheckpointError, first_line
from xft_core.files.parsing import parse_json
from xft_core.models.tokenizer_files import tokenizer_files

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory; if upcycled, that of the dense model. Raises CheckpointError if it has none that
    works."""
    from transformers import AutoConfig, AutoTokenizer  # takes a second, several with torch

    try:
        dense_config = _dense_config(directory)
        config = AutoConfig.for_model(**dense_config) if dense_config else None
        tokenizer = AutoTokenizer.from_pretrained(directory, config=config, trust_remote_code=False)
        tokenizer("x")  # some bad values in its files only appear in use
        return tokenizer
    except Exception as error:  # transformers raises a different type for each kind of missing file
        raise CheckpointError(f"{str(directory)!r} has no tokenizer that can be loaded: {first_line(error)}") from None


def keep_tokens(source: Path, target: Path) -> None:
    """Make the tokenizer in ``target``, a copy next to a config.json of another model type, give the tokens of ``source``'s: if
    it does not, write it as tokenizer.json says, which no model type changes."""
    if not tokenizer_files(source):
        return
    tokenizer = load_tokenizer(source)
    if _rules(tokenizer) in (None, _rules(load_tokenizer(target))):
        return
    tokenizer.save_pretrained(target)
    path = target / "tokenizer_config.json"
    content = json.loads(path.read_bytes()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    if _rules(tokenizer) != _rules(load_tokenizer(target)):
        raise CheckpointError(
            f"The tokenizer of {str(source)!r} would give other tokens next to the export's config.json. Please report this, "
            "with the tokenizer's files.")


def _rules(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """All of a tokenizer's rules; None for one that is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())


def _dense_config(directory: Path) -> dict[str, Any] | None:
    path = directory / "config.json"
    content = parse_json(path.read_bytes()) if path.is_file() else None
    found = content.get("dense_config") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None
