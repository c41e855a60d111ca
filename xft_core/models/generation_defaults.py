"""generation_config.json of tuned models: the tokens at which plain transformers, vLLM and our own generation stop."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from xft_core.files.parsing import parse_json

FILE_NAME = "generation_config.json"


def add_end_tokens(directory: Path, defaults: GenerationConfig, token_ids: list[int]) -> None:
    """Add tokens to those that end an answer of the model in ``directory``. Existing ones and all other fields stay.

    If the directory has no generation_config.json that transformers can read, ``defaults`` are written first.
    """
    path = directory / FILE_NAME
    content = _read(path)
    if content is None:
        defaults.save_pretrained(directory)
        content = json.loads(path.read_bytes())
    named = content.get("eos_token_id")
    ends = named if isinstance(named, list) else [] if named is None else [named]
    new = [token for token in token_ids if token not in ends]
    if new:
        content["eos_token_id"] = [*ends, *new]
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
