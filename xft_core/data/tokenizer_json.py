"""The tokenizer.json of a fast tokenizer: its content, a tokenizer loaded from it, and the bytes that its tokens stand for."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def tokenizer_content(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any] | None:
    """Return the tokenizer.json of a fast tokenizer; None for a slow tokenizer or one with parts written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        content: dict[str, Any] = json.loads(backend.to_str())  # type: ignore[union-attr]
    except Exception:  # the library's own exceptions, for parts that cannot be serialised
        return None
    content["truncation"] = content["padding"] = None
    return content


def loaded(content: dict[str, Any]) -> "Tokenizer":
    """Load a tokenizer with offsets that cover every character of its text, including spaces."""
    from tokenizers import Tokenizer

    processor = content.get("post_processor") or {}
    for part in (processor, *processor.get("processors", ())):
        if "trim_offsets" in part:
            part["trim_offsets"] = False
    return Tokenizer.from_str(json.dumps(content))


def bytes_of_tokens(content: dict[str, Any]) -> np.ndarray | None:
    """Return the number of text bytes that each token stands for (V,), if tokens are written in GPT-2's 256 letters, one per
    byte; None for any other tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel

    model, pre_tokenizer = content["model"], content.get("pre_tokenizer") or {}
    letters = set(ByteLevel.alphabet())
    kinds = {part["type"] for part in (pre_tokenizer, *pre_tokenizer.get("pretokenizers", ())) if "type" in part}
    if model["type"] != "BPE" or "ByteLevel" not in kinds or content.get("normalizer") or any(
            model.get(name) for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")):
        return None
    sizes = {number: len(name) if letters.issuperset(name) else len(name.encode()) for name, number in model["vocab"].items()}
    sizes |= {token["id"]: len(token["content"].encode()) for token in content["added_tokens"]}
    table = np.zeros(max(sizes) + 1, dtype=np.int64)
    table[list(sizes)] = list(sizes.values())
    return table if (np.array(list(sizes.values())) > 0).all() else None
