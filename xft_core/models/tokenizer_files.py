"""Which files make a tokenizer, so that data prepared for one model serves every model with the same tokenizer."""

from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.json", "chat_template.jinja")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any one of them says that there is a tokenizer


def tokenizer_files(directory: Path) -> list[Path]:
    """The tokenizer's files in a model directory, sorted."""
    return sorted(directory / name for name in TOKENIZER_FILES if (directory / name).is_file())
