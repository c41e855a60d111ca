"""The files that make up a tokenizer. Data prepared for one model serves every model with the same tokenizer."""

import json
from pathlib import Path

from xft_core.families import PICTURE_FAMILIES

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")  # of models that read pictures
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.json", "chat_template.jinja",
    *PROCESSOR_FILES)
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any of them means that there is a tokenizer


def tokenizer_files(directory: Path) -> list[Path]:
    """The tokenizer's files in a model directory, sorted."""
    return sorted(directory / name for name in TOKENIZER_FILES if (directory / name).is_file())


def reads_pictures(directory: Path) -> bool:
    """Whether the model in a directory is of a family that reads pictures. False if there is no usable config.json."""
    try:
        content = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    content = content.get("dense_config", content) if isinstance(content, dict) else {}
    return isinstance(content, dict) and content.get("model_type") in PICTURE_FAMILIES
