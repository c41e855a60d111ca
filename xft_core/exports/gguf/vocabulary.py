"""A transformers tokenizer in the form of a GGUF file.

llama.cpp splits text into words by named sets of regular expressions (``tokenizer.ggml.pre``). The name is found by trial: the
one with which the tokenizer gives the same tokens for texts that distinguish the names, and for the model's own data. llama.cpp
does not normalise: text that is not in Unicode form NFC may get other tokens there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from tokenizers import Regex, pre_tokenizers

from xft_core.errors import CheckpointError
from xft_core.files.parsing import parse_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # gguf.TokenType

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Names that llama.cpp knows, with its expressions for them (src/llama-vocab.cpp), applied one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_LLAMA3 % "1",),
    "llama-bpe": (_LLAMA3 % "1,3",),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
}
IGNORES_MERGES = frozenset({"llama-bpe"})  # a word that is a token stays one token, whatever the merges say
_PIECES = (" ", "    ", "\n", "\n\n", "\r\n", "\t", "1", "234", "5678", "a", "Def", "(", "!=", "'s", "é", "東", "😀")
TELLING = [
    "def f(x1, y22):\n\n    return x1[-1] + 3.14159 # it's 2026, we'll see\n\t\tpass\n    1. first\n  10. tenth\n",
    *("".join(pieces) for pieces in product(_PIECES, repeat=3))]


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary fields of the file: tokens by id, their types, merges, and the name of the pre-tokenizer."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str


def vocabulary_of(tokenizer: Any, size: int, texts: Iterable[str] = ()) -> Vocabulary:
    """Return the vocabulary of a byte-level BPE tokenizer for a model of ``size`` tokens: padded to this size, and without
    added tokens beyond it (usually a padding token), which the model has no row for.

    Raises CheckpointError for another kind of tokenizer, and if llama.cpp would split text differently.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = parse_json(backend.to_str().encode()) if backend is not None else {}
    model = content.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or "ByteLevel" not in str(content.get("pre_tokenizer")):
        raise CheckpointError(
            "The tokenizer is not byte-level BPE (it may be SentencePiece), so it cannot be written to GGUF here. Convert the "
            "model with llama.cpp's convert_hf_to_gguf.py.")
    if content.get("normalizer") not in (None, {"type": "NFC"}):
        raise CheckpointError("The tokenizer changes text before it splits it (a normalizer), which GGUF does not support.")
    added = {item["id"]: item for item in content["added_tokens"]}
    by_id = {index: token for token, index in model["vocab"].items()}
    if (words := max(by_id) + 1) > size and any(index not in added for index in range(size, words)):
        raise CheckpointError(
            f"The tokenizer has {words} tokens, but the model has {size}: it belongs to another model. No GGUF file was "
            "written.")
    by_id |= {index: item["content"] for index, item in added.items()}
    tokens, types = [], []
    for index in range(size):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        kind = UNUSED if index not in by_id else NORMAL
        if index in added:
            kind = CONTROL if added[index]["special"] else USER_DEFINED
        types.append(kind)
    merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
    return Vocabulary(tokens, types, merges, _pre_tokenizer(backend, bool(model.get("ignore_merges")), [*TELLING, *texts]))


def _pre_tokenizer(backend: Any, ignores_merges: bool, texts: list[str]) -> str:
    expected = [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]
    trial = type(backend).from_str(backend.to_str())
    for name, expressions in PRE_TOKENIZERS.items():
        if ignores_merges != (name in IGNORES_MERGES):
            continue
        trial.pre_tokenizer = pre_tokenizers.Sequence([
            *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        if [found.ids for found in trial.encode_batch(texts, add_special_tokens=False)] == expected:
            return name
    raise CheckpointError(
        f"The tokenizer splits text into words unlike any of llama.cpp's pre-tokenizers known here "
        f"({', '.join(PRE_TOKENIZERS)}): llama.cpp would give the model other tokens. No GGUF file was written.")
