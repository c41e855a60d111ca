"""Turn text into tokens, in the same way for training and generation: where a response begins, which text is a control token.

A prompt and its response are tokenised as one text, so that no tokenizer puts a space between them, and split where the
response begins. Data that spells a control token (``<s>``, ``<|im_end|>``) stays text: it goes through a copy of the tokenizer
with other spellings for control tokens. Only the parts that a chat template wrote get these spellings.
"""

import re
import string
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from xft_core.data.control_tokens import respelled, text_of_the_data, unused_number, with_other_spellings
from xft_core.data.prompt_text import PromptText, Tokens
from xft_core.data.response_end import is_control_token
from xft_core.data.response_start import (
    ANCHORS,
    SPARE_CHARACTERS,
    encode_head,
    longest_text,
    response_ids,
    response_start,
    utf8_length,
)
from xft_core.data.tokenizer_json import bytes_of_tokens, loaded, tokenizer_content
from xft_core.data.words import words_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

NONE = array("i")  # no tokens; never changed


def text_tokens(tokenizer: "PreTrainedTokenizerBase") -> "TextTokens":
    """Return the TextTokens of ``tokenizer``, created once for each tokenizer."""
    made = _MADE.get(tokenizer)
    if made is None or made.size != len(tokenizer):
        made = _MADE[tokenizer] = TextTokens(tokenizer)
    return made


def prompt_token_ids(prompt: PromptText, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the prompt's tokens, with a begin token if the tokenizer uses one, and never with an end token."""
    return text_tokens(tokenizer).encode([prompt])[0].ids.tolist()


class TextTokens:
    """A tokenizer for texts that consist of template parts and data."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.size = len(tokenizer)
        self._tokenizer = tokenizer
        content = tokenizer_content(tokenizer)
        controls = set(tokenizer.all_special_tokens)
        if content:
            controls |= {token["content"] for token in content["added_tokens"] if token["special"]}
        self._spelling = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)", re.IGNORECASE)
        first = {control[:1] for control in controls}
        # First characters, one of which every spelling contains. If they can have another case, this filter is disabled.
        self._first = [""] if any(it.lower() != it.upper() for it in first) else sorted(first)
        self._content, self._controls = content, controls
        self._ends: dict[str, bool] = {}
        self._private: tuple[int, Tokenizer, dict[str, str]] | None = None
        self._whole = loaded(content) if content else None
        self._token_bytes = bytes_of_tokens(content) if content else None
        self._words = words_of(content, self._whole) if content and self._whole and self._token_bytes is not None else None
        self._before = array("i", self._begin_tokens())
        self._heads: dict[str, array[int]] = {}

    def spells_control(self, text: str) -> bool:
        """Return whether a text contains the spelling of a control token, in upper or lower case."""
        for character in self._first:
            if character in text:
                return self._spelling.search(text) is not None
        return False

    def ends_with_control_token(self, text: str) -> bool:
        """Return whether generation can stop at the text's last token. Words and brackets do not qualify, because responses
        contain them too."""
        known = self._ends.get(text)
        if known is None:
            ids = self._tokenizer(text, add_special_tokens=False).input_ids if text else []
            known = bool(ids) and is_control_token(ids[-1], self._tokenizer)
            if len(text) < SPARE_CHARACTERS and len(self._ends) < SPARE_CHARACTERS:  # a template ends all turns the same way
                self._ends[text] = known
        return known

    def encode(self, texts: Sequence[PromptText], limit: int | None = None) -> list[Tokens]:
        """Return the tokens of each text. ``limit``: for a longer text, only the first ``limit`` + 1 tokens need be correct."""
        if self._whole is None:
            return [self._slow(text) for text in texts]
        found: list[Tokens | None] = [None] * len(texts)
        plain: list[int] = []
        for index, text in enumerate(texts):
            data_spells = self.spells_control(text_of_the_data(text))
            if data_spells or (limit is not None and len(text.text) > longest_text(limit)):
                found[index] = self._one(text, limit, data_spells)
            else:
                plain.append(index)
        heads = [self._head_of(texts[index]) for index in plain]
        written = [texts[index].text[texts[index].head if head else 0:] for index, head in zip(plain, heads, strict=True)]
        asked = [
            text.asked if text.asked is None or not head else text.asked - text.head
            for text, head in zip((texts[index] for index in plain), heads, strict=True)]
        encoded = self._encoded(written, asked)
        for index, head, tail, begins, (ids, place) in zip(plain, heads, written, asked, encoded, strict=True):
            found[index] = self._cut(self._whole, texts[index], tail, begins, ids, place, limit, head)
        return found  # type: ignore[return-value]

    def _encoded(self, texts: list[str], asked: list[int | None]) -> "list[tuple[array[int], int | None]]":
        """Return the tokens of each text, and the first token from character ``asked`` on, as ``boundary`` returns it.

        Computing offsets takes a third of a tokenizer's time. If the tokens of a text have as many bytes as the text, each
        token stands for exactly its own bytes, and the byte counts give the positions.
        """
        assert self._whole is not None
        token_bytes = self._token_bytes
        if token_bytes is None:
            encodings = self._whole.encode_batch(texts, add_special_tokens=False)
            return [
                (array("i", item.ids), response_start(item, begins, text))
                for item, begins, text in zip(encodings, asked, texts, strict=True)]
        every = self._ids(texts)
        ends = np.cumsum([0, *map(len, every)]) // 4
        flat = np.frombuffer(b"".join(every), dtype=np.int32)
        before = np.concatenate([[0], np.cumsum(token_bytes[flat])])  # bytes before each token
        given = [utf8_length(text[:begins]) if begins else 0 for text, begins in zip(texts, asked, strict=True)]
        wanted = before[ends[:-1]] + given
        places = np.searchsorted(before, wanted)
        found: list[tuple[array[int], int | None]] = []
        for text, begins, ids, size, place, hit in zip(
                texts, asked, every, np.diff(before[ends]).tolist(), (places - ends[:-1]).tolist(),
                (before[np.minimum(places, len(flat))] == wanted).tolist(), strict=True):
            if size == utf8_length(text):
                found.append((array("i", ids), place if hit else None))
            else:
                encoding = self._whole.encode(text, add_special_tokens=False)
                found.append((array("i", encoding.ids), response_start(encoding, begins, text)))
        return found

    def _ids(self, texts: list[str]) -> list[bytes]:
        """Return the tokens of each text (int32)."""
        assert self._whole is not None
        ids: list[bytes | None] = [None] * len(texts) if self._words is None else list(map(self._words.ids, texts))
        others = [index for index, known in enumerate(ids) if known is None]
        encodings = self._whole.encode_batch_fast([texts[index] for index in others], add_special_tokens=False)
        for index, encoding in zip(others, encodings, strict=True):
            ids[index] = array("i", encoding.ids).tobytes()
        return ids  # type: ignore[return-value]

    def _one(self, text: PromptText, limit: int | None, data_spells: bool) -> Tokens:
        whole = self._whole
        assert whole is not None
        written, asked = text.text, text.asked
        if data_spells:
            number, private = unused_number(text.text), self._private
            if private is None or private[0] != number:
                private = self._private = number, *with_other_spellings(
                    self._content, self._controls, number)  # type: ignore[arg-type]
            _, whole, spellings = private
            written, asked = respelled(text, spellings)
        encoding = encode_head(whole, written, limit)
        return self._cut(whole, text, written, asked, array("i", encoding.ids), response_start(encoding, asked, written), limit)

    def _cut(
        self, whole: "Tokenizer", text: PromptText, written: str, asked: int | None, ids: "array[int]", place: int | None,
        limit: int | None, head: "array[int]" = NONE,
    ) -> Tokens:
        before = head if text.has_special_tokens else self._before + head
        if asked is None or asked >= len(written):
            return Tokens(before + ids, len(before) + len(ids))
        if place is not None:
            return Tokens(before + ids, len(before) + place)
        prompt = array("i", encode_head(whole, written[:asked], limit).ids)
        return Tokens(before + prompt + response_ids(whole, written[asked:], limit), len(before) + len(prompt), forced=True)

    def _head_of(self, text: PromptText) -> "array[int]":
        """Return the tokens of a text's head if the rest can be tokenised separately; none if that might change the tokens."""
        following = text.text[text.head:text.head + 1]
        if not text.head or not (following.isascii() and following.isalnum()):
            return NONE
        head = text.text[:text.head]
        if head not in self._heads:
            self._heads[head] = self._separate(head)
        return self._heads[head]

    def _separate(self, head: str) -> "array[int]":
        """Return a head's tokens if they and the tokens of a following letter or digit do not affect each other; else none."""
        assert self._whole is not None
        ids: list[int] = self._whole.encode(head, add_special_tokens=False).ids
        for first in string.ascii_letters + string.digits:
            for rest in (first, f"{first}a b", f"{first} \n", f"{first}1.", first * 9):
                alone = self._whole.encode(rest, add_special_tokens=False).ids
                if self._whole.encode(head + rest, add_special_tokens=False).ids != ids + alone:
                    return NONE
        return array("i", ids)

    def _slow(self, text: PromptText) -> Tokens:
        """Use a tokenizer without offsets: the prompt by itself, and the response as the rest of the entire text."""
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": not text.has_special_tokens}
        parsed = text.has_special_tokens and self.spells_control(text_of_the_data(text))
        before = NONE if text.has_special_tokens else self._before
        ids = array("i", self._tokenizer(text.text, **options).input_ids)
        if text.asked is None or text.asked >= len(text.text):
            return Tokens(before + ids, len(before) + len(ids), parsed=parsed)
        prompt = array("i", self._tokenizer(text.text[:text.asked], **options).input_ids)
        if ids[:len(prompt)] == prompt:
            return Tokens(before + ids, len(before) + len(prompt), parsed=parsed)
        response = text.text[text.asked:]
        for anchor in ANCHORS:
            alone = array("i", self._tokenizer(anchor, **options).input_ids)
            behind = array("i", self._tokenizer(anchor + response, **options).input_ids)
            if behind[:len(alone)] == alone:
                rest = behind[len(alone):]
                break
        else:
            rest = array("i", self._tokenizer(response, **options).input_ids)
        return Tokens(before + prompt + rest, len(before) + len(prompt), forced=True, parsed=parsed)

    def _begin_tokens(self) -> list[int]:
        """Return the tokens that the tokenizer puts before every text: usually a begin token, or nothing."""
        with_all, without = (
            list(self._tokenizer("a", add_special_tokens=added).input_ids) for added in (True, False))
        for length in range(len(with_all) - len(without) + 1):
            if with_all[length:length + len(without)] == without:
                return with_all[:length]
        return []


_MADE: "WeakKeyDictionary[PreTrainedTokenizerBase, TextTokens]" = WeakKeyDictionary()
