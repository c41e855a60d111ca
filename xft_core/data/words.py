"""Tokenise ASCII text word by word: a byte-level tokenizer spends seven eighths of its time on finding the words.

A byte-level BPE tokenizer splits a text into words by regular expressions, and tokenises each word separately. Here Python's
``re`` does the splitting, and the tokens of words are cached. In ASCII text both engines mean the same by ``\\s`` and
``\\p{L}``. Before first use, the words are compared with the tokenizer's own on texts with all kinds of characters.
"""

import random
import re
from array import array
from collections.abc import Callable, Iterator
from itertools import chain, product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REMEMBERED = 2**16  # words
LONGEST = 64  # characters of a cached word
# ByteLevel's own: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, with the most common words first.
GPT2 = r" ?\p{L}+| ?\p{N}+|'(?:[stmd]|re|ve|ll)| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACES, DIGITS = " \t\n\r\f\v", "0123456789"
SAME_IN_ASCII = {"NFC", "NFD", "NFKC", "NFKD"}  # normalizers
# The ASCII characters of Unicode's classes, for use inside brackets.
CLASSES = {
    "L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "Mn": "", "N": "0-9", "Nd": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<=>\^`|~", "Han": ""}
_ONE_CLASS = re.compile(r"(?:\[(?:[^\[\]\\^]|\\[rnt])+\]|\\p\{N\})\+?")
_CLASS = re.compile(r"\\p\{(\w+)\}")
_OTHER_MEANING = re.compile(r"\\[^prnstdfSDx.\-\[\](){}/*+?|^$'\"]|\\P|&&|\[\[|\(\?[^:!=i]|\((?!\?)|(?<![\[\\])[\^$]")
_TRIED = "aZs1 \n\t\r'._(\x00\x1f\x7f"

Cut = Callable[[str], list[str]]


class Words:
    """Tokenises ASCII texts."""

    def __init__(self, whole: "Tokenizer", cuts: list[Cut], added: "re.Pattern[str]") -> None:
        (self._first, *self._others), self._added = cuts, added
        self._tokens = _Remembered(whole)

    def ids(self, text: str) -> bytes | None:
        """Return a text's tokens (int32); None if only the tokenizer itself can tokenise this text."""
        if not text.isascii() or self._added.search(text):
            return None
        return b"".join(map(self._tokens.__getitem__, self.cut(text)))

    def cut(self, text: str) -> list[str]:
        """The words of an ASCII text."""
        words = self._first(text)
        for cut in self._others:
            words = [*chain.from_iterable(map(cut, words))]
        return words


class _Remembered(dict[str, bytes]):
    """A cache of the tokens of words."""

    def __init__(self, whole: "Tokenizer") -> None:
        from tokenizers.pre_tokenizers import ByteLevel

        super().__init__()
        self._model = whole.model
        # One letter for each byte. Printable ASCII bytes stand for themselves; the other bytes get the other letters in order.
        letters = sorted(ByteLevel.alphabet(), key=ord)
        own = {ord(letter) for letter in letters if ord(letter) < 256}
        others = iter([letter for letter in letters if ord(letter) >= 256])
        self._letters = {byte: chr(byte) if byte in own else next(others) for byte in range(256)}

    def __missing__(self, word: str) -> bytes:
        made = array("i", [token.id for token in self._model.tokenize(word.translate(self._letters))]).tobytes()
        if len(word) <= LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = made
        return made


def words_of(content: dict[str, Any], whole: "Tokenizer") -> Words | None:
    """Return a tokeniser of ASCII text that is equivalent to ``whole`` (with tokenizer.json ``content``); None if uncertain."""
    model = content["model"]
    if model["type"] != "BPE" or model.get("dropout") or any(
            model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")):
        return None
    if not all(part["type"] in SAME_IN_ASCII for part in _parts(content.get("normalizer"), "normalizers")):
        return None
    parts = _parts(content.get("pre_tokenizer"), "pretokenizers")
    patterns = [pattern for part in parts for pattern in _patterns(part)]
    if patterns[1:] == [GPT2] and (both := _at_once(patterns[0])):
        patterns = [both]
    cuts = [None if pattern is None else _cut_by(pattern) for pattern in patterns]
    if None in cuts or not any(part["type"] == "ByteLevel" for part in parts):
        return None
    added = "|".join(re.escape(token["content"]) for token in content["added_tokens"]) or r"(?!)"
    words = Words(whole, cuts, re.compile(added))  # type: ignore[arg-type]
    return words if all(_same(words, whole, text) for text in _texts_to_try()) else None


def _parts(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return a part of a tokenizer.json as a list, or the parts of a sequence."""
    if not part:
        return []
    return [each for inner in part[name] for each in _parts(inner, name)] if part["type"] == "Sequence" else [part]


def _patterns(part: dict[str, Any]) -> "Iterator[str | None]":
    """Yield the patterns that a pre-tokenizer part splits around; None for an unknown part."""
    kind = part["type"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        if part.get("use_regex", True):
            yield GPT2
    elif kind == "Digits":
        yield r"\p{N}" if part["individual_digits"] else r"\p{N}+"
    elif kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        pattern = part["pattern"]
        yield pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
    else:
        yield None


def _at_once(first: str | None) -> str | None:
    """Return one pattern that splits around ``first`` (some white space and digits) and the rest by GPT2; None for others."""
    if not first or not _ONE_CLASS.fullmatch(first):
        return None
    only = re.compile(_in_python(first), re.ASCII)
    out = {character for character in map(chr, range(128)) if only.match(character)}
    if not out <= {*SPACES, *DIGITS} - {" "}:
        return None
    spaces, digits, none = ("".join(sorted(some)) for some in ({*SPACES} - out, {*DIGITS} - out, out))
    between = GPT2.replace(r"\s+", f"[{spaces}]+").replace(r"^\s", rf"^\s{none}").replace(r"\S", rf"[^\s{none}]")
    return f"{first}|" + between.replace(r" ?\p{N}+", f" ?[{digits}]+" if digits else first)


def _cut_by(pattern: str) -> "Cut | None":
    """Return a function that splits around each match of the tokenizer's regular expression; None if Python may differ."""
    if set(_CLASS.findall(pattern)) - set(CLASSES):
        return None
    translated = _in_python(pattern)
    if _OTHER_MEANING.search(pattern.replace("[^", "[")):
        return None
    try:
        if re.compile(translated, re.ASCII).match(""):
            return None
        # The second alternative matches the text between two matches.
        return re.compile(rf"{translated}|(?:(?!{translated})[\s\S])+", re.ASCII).findall
    except re.error:
        return None


def _in_python(pattern: str) -> str:
    """Return a regular expression with its Unicode classes replaced by their ASCII characters."""
    translated, in_brackets, place = "", False, 0
    while place < len(pattern):
        found = _CLASS.match(pattern, place)
        if found:
            characters = CLASSES[found[1]]
            translated += characters if in_brackets else f"[{characters}]" if characters else "(?!)"
            place = found.end()
            continue
        size = 2 if pattern[place] == "\\" else 1
        piece = pattern[place:place + size]
        in_brackets = piece == "[" or (in_brackets and piece != "]")
        translated += piece
        place += size
    return translated


def _texts_to_try() -> Iterator[str]:
    """Yield all short texts of characters of every kind, and some long texts."""
    yield from map("".join, product(_TRIED, repeat=3))
    rng = random.Random(0)
    for _ in range(300):
        yield "".join(chr(rng.randrange(128)) if rng.random() < 0.3 else rng.choice(_TRIED) for _ in range(40))


def _same(words: Words, whole: "Tokenizer", text: str) -> bool:
    """Return whether both give the same tokens for a text."""
    ids = words.ids(text)
    return ids is None or ids == array("i", whole.encode(text, add_special_tokens=False).ids).tobytes()
