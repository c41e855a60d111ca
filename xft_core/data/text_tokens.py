"""Text to tokens, the same in training and in generation: where a response begins, and which text may be a control token.

A prompt and what follows it are tokenised as one text, so that no tokenizer puts a space between them, and cut where the
response begins. Text of the data that spells a control token (``<s>``, ``<|im_end|>``) stays text: such a text goes through a
copy of the tokenizer whose control tokens have other spellings, which only the parts that a chat template wrote are given.
"""

import json
import re
import string
from array import array
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from xft_core.data.response_end import is_control_token
from xft_core.data.words import words_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Span = tuple[int, int]
CHARACTERS_PER_TOKEN, SPARE_CHARACTERS = 16, 4096  # of a text that is tokenised whole, for each token that is kept
STRIPPED = 64  # characters at most that a tokenizer drops where a response begins
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PRIVATE = re.compile("\ue000([0-9]+)\ue002")
# Texts that a response may be tokenised behind, to have it without the space that begins a text.
ANCHORS = ("\n", ":", "a", ")", " ")
NONE = array("i")  # no tokens; never changed


class PromptText(NamedTuple):
    """A text for a model, of which the first ``asked`` characters are the prompt (None: all of it).

    A chat template writes its special tokens itself (``has_special_tokens``); else the tokenizer adds its own.
    ``control``: the spans in which the spelling of a control token is one; None: everywhere, in a text with
    ``has_special_tokens``, and nowhere in another.
    """

    text: str
    has_special_tokens: bool
    asked: int | None = None
    control: tuple[Span, ...] | None = None
    head: int = 0  # characters at its beginning that are the same in every text of a template

    def begin(self, answer: str) -> "PromptText":
        """The prompt with the first text of an answer after it."""
        control = self.control
        if control is None and self.has_special_tokens:
            control = ((0, len(self.text)),)
        return PromptText(self.text + answer, self.has_special_tokens, len(self.text), control, self.head)

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The prompt's tokens, with a begin token if the tokenizer uses one and never an end token."""
        return text_tokens(tokenizer).encode([self])[0].ids.tolist()


class Tokens(NamedTuple):
    """Tokens of a text (int32), the first ``prompt_length`` of them of its prompt.

    ``forced``: no token ends where the prompt does, so prompt and answer were tokenised apart. ``parsed``: text of the data
    became a control token, which this tokenizer cannot prevent.
    """

    ids: "array[int]"
    prompt_length: int
    forced: bool = False
    parsed: bool = False


def text_tokens(tokenizer: "PreTrainedTokenizerBase") -> "TextTokens":
    """What makes tokens of texts with ``tokenizer``; made once for each."""
    made = _MADE.get(tokenizer)
    if made is None or made.size != len(tokenizer):
        made = _MADE[tokenizer] = TextTokens(tokenizer)
    return made


class TextTokens:
    """A tokenizer for texts that consist of a template's parts and of data."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.size = len(tokenizer)
        self._tokenizer = tokenizer
        content = _content(tokenizer)
        controls = set(tokenizer.all_special_tokens)
        if content:
            controls |= {token["content"] for token in content["added_tokens"] if token["special"]}
        self._spelling = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)", re.IGNORECASE)
        first = {control[:1] for control in controls}
        # What none of them can be without, unless it may be in another case.
        self._first = None if any(it.lower() != it.upper() for it in first) else first
        self._content, self._controls = content, controls
        self._ends: dict[str, bool] = {}
        self._private: tuple[int, Tokenizer, dict[str, str]] | None = None
        self._whole = _loaded(content) if content else None
        self._token_bytes = _bytes_of_tokens(content) if content else None
        self._words = words_of(content, self._whole) if content and self._whole and self._token_bytes is not None else None
        self._before = array("i", self._begin_tokens())
        self._heads: dict[str, array[int]] = {}

    def spells_control(self, text: str) -> bool:
        """Whether a text holds the spelling of a control token, in any case."""
        if self._first is not None and not any([character in text for character in self._first]):
            return False
        return self._spelling.search(text) is not None

    def ends_with_control_token(self, text: str) -> bool:
        """Whether the text's last token is one that generation can stop at. A word or a bracket is none: responses hold
        these, too."""
        known = self._ends.get(text)
        if known is None:
            ids = self._tokenizer(text, add_special_tokens=False).input_ids if text else []
            known = bool(ids) and is_control_token(ids[-1], self._tokenizer)
            if len(text) < SPARE_CHARACTERS and len(self._ends) < SPARE_CHARACTERS:  # a template ends all turns alike
                self._ends[text] = known
        return known

    def encode(self, texts: Sequence[PromptText], limit: int | None = None) -> list[Tokens]:
        """Tokens of each text. ``limit``: of a text with more tokens only that many, and one more, need be right."""
        if self._whole is None:
            return [self._slow(text) for text in texts]
        found: list[Tokens | None] = [None] * len(texts)
        plain: list[int] = []
        for index, text in enumerate(texts):
            data_spells = self.spells_control(_of_the_data(text))
            if data_spells or (limit is not None and len(text.text) > _longest(limit)):
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
        """Tokens of each text, and the first of them from character ``asked`` on, as ``_boundary`` has it.

        Offsets are a third of a tokenizer's time. Where the tokens of a text together have as many bytes as it has, each is
        the bytes that it stands for, and their numbers tell the places.
        """
        assert self._whole is not None
        token_bytes = self._token_bytes
        if token_bytes is None:
            encodings = self._whole.encode_batch(texts, add_special_tokens=False)
            return [
                (array("i", item.ids), _place(item, begins, text))
                for item, begins, text in zip(encodings, asked, texts, strict=True)]
        every = self._ids(texts)
        ends = np.cumsum([0, *map(len, every)]) // 4
        flat = np.frombuffer(b"".join(every), dtype=np.int32)
        before = np.concatenate([[0], np.cumsum(token_bytes[flat])])  # bytes before each token
        given = [_bytes(text[:begins]) if begins else 0 for text, begins in zip(texts, asked, strict=True)]
        wanted = before[ends[:-1]] + given
        places = np.searchsorted(before, wanted)
        found: list[tuple[array[int], int | None]] = []
        for text, begins, ids, size, place, hit in zip(
                texts, asked, every, np.diff(before[ends]).tolist(), (places - ends[:-1]).tolist(),
                (before[np.minimum(places, len(flat))] == wanted).tolist(), strict=True):
            if size == _bytes(text):
                found.append((array("i", ids), place if hit else None))
            else:
                encoding = self._whole.encode(text, add_special_tokens=False)
                found.append((array("i", encoding.ids), _place(encoding, begins, text)))
        return found

    def _ids(self, texts: list[str]) -> list[bytes]:
        """Tokens of each text (int32)."""
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
            number, private = _unused_number(text.text), self._private
            if private is None or private[0] != number:
                private = self._private = number, *_with_other_spellings(
                    self._content, self._controls, number)  # type: ignore[arg-type]
            _, whole, spellings = private
            written, asked = _respelled(text, spellings)
        encoding = _head(whole, written, limit)
        return self._cut(whole, text, written, asked, array("i", encoding.ids), _place(encoding, asked, written), limit)

    def _cut(
        self, whole: "Tokenizer", text: PromptText, written: str, asked: int | None, ids: "array[int]", place: int | None,
        limit: int | None, head: "array[int]" = NONE,
    ) -> Tokens:
        before = head if text.has_special_tokens else self._before + head
        if asked is None or asked >= len(written):
            return Tokens(before + ids, len(before) + len(ids))
        if place is not None:
            return Tokens(before + ids, len(before) + place)
        prompt = array("i", _head(whole, written[:asked], limit).ids)
        return Tokens(before + prompt + _continued(whole, written[asked:], limit), len(before) + len(prompt), forced=True)

    def _head_of(self, text: PromptText) -> "array[int]":
        """Tokens of a text's head where the rest may be tokenised without it; none where that is not known to be the same."""
        following = text.text[text.head:text.head + 1]
        if not text.head or not (following.isascii() and following.isalnum()):
            return NONE
        head = text.text[:text.head]
        if head not in self._heads:
            self._heads[head] = self._separate(head)
        return self._heads[head]

    def _separate(self, head: str) -> "array[int]":
        """A head's tokens if no letter or digit that follows changes them, nor they what follows; else none."""
        assert self._whole is not None
        ids: list[int] = self._whole.encode(head, add_special_tokens=False).ids
        for first in string.ascii_letters + string.digits:
            for rest in (first, f"{first}a b", f"{first} \n", f"{first}1.", first * 9):
                alone = self._whole.encode(rest, add_special_tokens=False).ids
                if self._whole.encode(head + rest, add_special_tokens=False).ids != ids + alone:
                    return NONE
        return array("i", ids)

    def _slow(self, text: PromptText) -> Tokens:
        """With a tokenizer that tells no places: the prompt by itself, and the response as the rest of the whole text."""
        options: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": not text.has_special_tokens}
        parsed = text.has_special_tokens and self.spells_control(_of_the_data(text))
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
        """What the tokenizer puts in front of every text: a begin token, mostly, or nothing."""
        with_all, without = (
            list(self._tokenizer("a", add_special_tokens=added).input_ids) for added in (True, False))
        for length in range(len(with_all) - len(without) + 1):
            if with_all[length:length + len(without)] == without:
                return with_all[:length]
        return []


_MADE: "WeakKeyDictionary[PreTrainedTokenizerBase, TextTokens]" = WeakKeyDictionary()


def _content(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any] | None:
    """The tokenizer.json of a fast tokenizer, None of a slow one or one with parts written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        content: dict[str, Any] = json.loads(backend.to_str())  # type: ignore[union-attr]
    except Exception:  # the library's own, for what cannot be written down
        return None
    content["truncation"] = content["padding"] = None
    return content


def _loaded(content: dict[str, Any]) -> "Tokenizer":
    """A tokenizer whose offsets cover every character of its text, spaces too."""
    from tokenizers import Tokenizer

    processor = content.get("post_processor") or {}
    for part in (processor, *processor.get("processors", ())):
        if "trim_offsets" in part:
            part["trim_offsets"] = False
    return Tokenizer.from_str(json.dumps(content))


def _unused_number(text: str) -> int:
    """The smallest number with which no spelling of ``_with_other_spellings`` is in the text."""
    used = set(_PRIVATE.findall(text))
    return next(number for number in count() if str(number) not in used)


def _with_other_spellings(content: dict[str, Any], controls: set[str], number: int) -> tuple["Tokenizer", dict[str, str]]:
    """The tokenizer with spellings of its control tokens that hold ``number``, and each one's new spelling."""
    replaced = sorted(control for control in controls if not _BYTE.fullmatch(control))
    spellings = {control: f"\ue000{number}\ue002{index}\ue001" for index, control in enumerate(replaced)}
    content = json.loads(json.dumps(content))
    # Bytes keep their names, by which the model writes what it has no token for; no template means them.
    content["added_tokens"] = [token for token in content["added_tokens"] if not _BYTE.fullmatch(token["content"])]
    for token in content["added_tokens"]:
        token["content"] = spellings.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spellings.get(name, name): number for name, number in model["vocab"].items()}
    else:
        model["vocab"] = [[spellings.get(name, name), score] for name, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spellings.get(model["unk_token"], model["unk_token"])
    return _loaded(content), spellings


def _respelled(text: PromptText, spellings: dict[str, str]) -> tuple[str, int | None]:
    """The text as the tokenizer with other spellings is to be given it, and where its prompt ends there."""
    pattern = re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))))
    written, end, asked = "", 0, text.asked
    for start, stop in (*(text.control or ()), (len(text.text), len(text.text))):
        for piece, is_control in ((text.text[end:start], False), (text.text[start:stop], True)):
            if text.asked is not None and end <= text.asked <= end + len(piece):
                head = piece[:text.asked - end]
                asked = len(written) + len(pattern.sub(lambda found: spellings[found[0]], head) if is_control else head)
            written += pattern.sub(lambda found: spellings[found[0]], piece) if is_control else piece
            end += len(piece)
    return written, asked


def _of_the_data(text: PromptText) -> str:
    """The parts of a text in which the spelling of a control token is not one."""
    if text.control is None:
        return "" if text.has_special_tokens else text.text
    pieces, end = [], 0
    for start, stop in (*text.control, (len(text.text), len(text.text))):
        pieces.append(text.text[end:start])
        end = stop
    return "\n".join(pieces)


def _place(encoding: "Encoding", asked: int | None, text: str) -> int | None:
    """Where the response begins in a text's tokens; None also for a text that is a prompt only."""
    return None if asked is None or asked >= len(text) else _boundary(encoding, asked, len(text))


def _bytes(text: str) -> int:
    """Length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _bytes_of_tokens(content: dict[str, Any]) -> np.ndarray | None:
    """How many bytes of a text each token stands for (V,), with a tokenizer whose tokens are written in GPT-2's 256
    letters, one for a byte; None with another."""
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


def _boundary(encoding: "Encoding", asked: int, length: int) -> int | None:
    """The first token of the text from character ``asked`` on; None where a token holds characters of both sides."""
    for place in range(asked, min(length, asked + STRIPPED)):
        token = encoding.char_to_token(place)
        if token is None:
            continue  # a space that the tokenizer drops
        span, before = encoding.token_to_chars(token), encoding.token_to_chars(token - 1) if token else None
        return token if span and span[0] >= asked and (before is None or before[1] <= asked) else None
    return None


def _continued(whole: "Tokenizer", response: str, limit: int | None) -> "array[int]":
    """Tokens of a response that follows something."""
    for anchor in ANCHORS:
        encoding = _head(whole, anchor + response, limit)
        place = _boundary(encoding, len(anchor), len(anchor) + len(response))
        if place is not None:
            return array("i", encoding.ids[place:])
    return array("i", _head(whole, response, limit).ids)


def _longest(limit: int) -> int:
    return CHARACTERS_PER_TOKEN * limit + SPARE_CHARACTERS


def _head(whole: "Tokenizer", text: str, limit: int | None) -> "Encoding":
    """A text's tokens; where ``limit`` is far less than there are, those of its first part, as long as need be: until twice
    as much text begins with the same tokens."""
    if limit is not None:
        size, known = _longest(limit), None
        while size < len(text):
            encoding = whole.encode(text[:size], add_special_tokens=False)
            first = encoding.ids[:limit + 1]
            if len(first) > limit and first == known:
                return encoding
            size, known = 2 * size, first
    return whole.encode(text, add_special_tokens=False)
