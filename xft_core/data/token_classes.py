"""Classify each token of a response: keyword, identifier, string, comment, number or operator, or prose.

Python's own tokenizer reads Python code: fenced code without a language or marked as Python, and an entire response that
parses. Text around fences, and a response that neither has fences nor parses, is prose. There is no class (None) for code in
other languages, code after a position that Python's tokenizer cannot read, white space, and special tokens.
"""

import ast
import io
import keyword
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES = ("keyword", "identifier", "string", "comment", "number or operator", "prose")
_PYTHON = frozenset({"", "python", "py", "python3"})
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_STRINGS = frozenset({"STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"})  # the last three from Python 3.12 on


def token_classes(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> list[str | None]:
    """Return the class of every token of a response: the class of its first character that is not white space."""
    pieces = _pieces(tokenizer, tokens)
    text = "".join(pieces)
    classes, found, start = character_classes(text), list[str | None](), 0
    for piece in pieces:
        place = start + len(piece) - len(piece.lstrip())
        start += len(piece)
        found.append(classes[place] if place < start else None)
    return found


def character_classes(text: str) -> list[str | None]:
    """Return the class of every character of a response."""
    if not _FENCE.search(text):
        return _of_code(text) if _is_code(text) else ["prose"] * len(text)
    classes: list[str | None] = ["prose"] * len(text)
    for fence in _FENCE.finditer(text):
        start, end = fence.span(2)
        is_python = fence[1].strip().lower() in _PYTHON
        classes[fence.start():fence.end()] = [None] * (fence.end() - fence.start())
        classes[start:end] = _of_code(text[start:end]) if is_python else [None] * (end - start)
    return classes


def _is_code(text: str) -> bool:
    """Return whether the entire text is Python and more than a name or a value (any single word parses as a name)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Name | ast.Constant)) for item in body)


def _of_code(code: str) -> list[str | None]:
    classes: list[str | None] = [None] * len(code)
    starts = [0, *accumulate(map(len, io.StringIO(code, newline="")))]  # offsets of lines as the tokenizer counts them
    for token in _read(code):
        kind = _kind(token)
        if kind is not None:
            start, end = (starts[line - 1] + column for line, column in (token.start, token.end))
            classes[start:end] = [kind] * (end - start)
    return classes


def _read(code: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens up to the first position that cannot be read."""
    try:
        yield from tokenize.generate_tokens(io.StringIO(code, newline="").readline)
    except (tokenize.TokenError, SyntaxError):
        return


def _kind(token: tokenize.TokenInfo) -> str | None:
    name = tokenize.tok_name[token.type]
    if name == "NAME":
        return "keyword" if keyword.iskeyword(token.string) else "identifier"
    if name in _STRINGS:
        return "string"
    if name == "COMMENT":
        return "comment"
    return "number or operator" if name in ("NUMBER", "OP") else None


def _pieces(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds. A character spread over several tokens counts for the last one.

    Each token is decoded after the token before it, because some tokenizers drop the space at the beginning of a text.
    """
    def decoded(some: Sequence[int]) -> str:
        text: str = tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    pieces: list[str] = []
    before: list[int] = []
    waiting: list[int] = []
    for place, token in enumerate(tokens):
        waiting.append(token)
        piece = decoded([*before, *waiting])[len(decoded(before)):]
        if piece.endswith("\N{REPLACEMENT CHARACTER}") and place + 1 < len(tokens) and len(waiting) < 4:
            pieces.append("")
            continue
        pieces.append(piece)
        before, waiting = waiting, []
    return pieces
