"""Turn conversations into token sequences: prompt and response, truncated to the maximum length."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xft_core.data.conversation import PLAIN_TEXT, Message
from xft_core.data.prompt_text import PromptText
from xft_core.data.row_writing import Row
from xft_core.data.templates import training_text, turn_marker
from xft_core.data.text_tokens import text_tokens
from xft_core.data.turns import is_whole, join, turns
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

BATCH = 1024  # conversations tokenised at once
BATCH_CHARACTERS = 2**20  # fewer of them if they are long
# The counts of used rows, each with its wording in the log.
NOTED = {
    "truncated": "responses cut at data.max_length",
    "earlier_turns_unused": "conversations with earlier answers, which are given, not learned: only the last answer is learned",
    "control_token_text": "rows with text that spells a control token of the tokenizer: it stays text",
    "control_tokens_from_text": "rows in which text became a control token, which this tokenizer cannot prevent",
    "turn_marker_text": "rows with the text that the chat template begins an answer with: a model cannot distinguish the two",
    "end_token_added": "responses that the chat template does not end with a token: an end-of-sequence token is added, so that "
                       "a tuned model can stop",
    "boundary_forced": "rows without a token boundary where the response begins: prompt and response are tokenised separately",
}
# A row's notes are the sum of these.
BITS = {name: 1 << place for place, name in enumerate(NOTED)}
FAILED = 1 << len(NOTED)  # the conversation cannot be a row: RowMaker.check raises the reason


@dataclass(frozen=True)
class Texts:
    """The texts of N conversations to tokenise, except those that FAILED. ``places``: each text's conversation (0 to N-1);
    ``needs_end``: whether the end token follows it; ``notes`` (N,). If every answer is learned, each has its own text."""

    texts: list[PromptText]
    places: list[int]
    needs_end: list[bool]
    notes: np.ndarray


@dataclass(frozen=True)
class Made:
    """Rows of N conversations: all tokens in sequence (int32), and for each row its length, its prompt length and its notes
    (N,). A length of 0 means that there is no room for any of the response, or that the row FAILED."""

    input_ids: "array[int]"
    lengths: np.ndarray
    prompt_lengths: np.ndarray
    notes: np.ndarray

    def buffers(self) -> list[Any]:
        """Return the buffers from which ``of`` restores this object."""
        return [self.input_ids, self.lengths, self.prompt_lengths, self.notes]

    @classmethod
    def of(cls, buffers: Sequence[bytes]) -> "Made":
        """Restore the rows that another process made."""
        input_ids = array("i")
        input_ids.frombytes(buffers[0])
        kinds = (np.int32, np.int32, np.uint16)
        return cls(input_ids, *(np.frombuffer(given, kind) for given, kind in zip(buffers[1:], kinds, strict=True)))


class RowMaker:
    """Turns conversations into rows. Raises DataError if no conversation at all could become a row."""

    def __init__(self, config: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._config, self._tokenizer = config, tokenizer
        self._end_token = tokenizer.eos_token_id
        if self._end_token is None and config.template == "magicoder":
            raise DataError(f"{config.path!r}: the tokenizer has no end-of-sequence token, so a response could never end")
        self._tokens = text_tokens(tokenizer)
        self._marker = turn_marker(tokenizer) if config.template == "chat" else None

    def make(self, conversations: Sequence[list[Message]]) -> Made:
        """Return the row of each conversation. A response that does not fit is truncated (and then has no end token)."""
        return self._rows(self._texts_of(conversations))

    def _texts_of(self, conversations: Sequence[list[Message]]) -> Texts:
        texts: list[PromptText] = []
        needs_end: list[bool] = []
        notes = np.zeros(len(conversations), dtype=np.uint16)
        places = []
        for place, messages in enumerate(conversations):
            try:
                found, needs_end_token, notes[place] = self._texts(messages)
            except DataError:
                notes[place] = FAILED
                continue
            texts += found
            needs_end += [False] * (len(found) - 1) + [needs_end_token]
            places += [place] * len(found)
        return Texts(texts, places, needs_end, notes)

    def _rows(self, texts: Texts) -> Made:
        longest, notes = self._config.max_length, texts.notes
        input_ids = array("i")
        lengths, prompt_lengths = ([0] * len(notes) for _ in range(2))
        if self._config.loss_on == "all":
            return self._rows_of_turns(texts)
        encoded = self._tokens.encode(texts.texts, longest)
        for place, needs_end_token, (ids, prompt_length, forced, parsed) in zip(
                texts.places, texts.needs_end, encoded, strict=True):
            if prompt_length >= longest:
                notes[place] = 0
                continue
            if needs_end_token:
                ids.append(self._end_token)
            if len(ids) > longest:
                notes[place] |= BITS["truncated"]
                del ids[longest:]
            if forced:
                notes[place] |= BITS["boundary_forced"]
            if parsed:
                notes[place] |= BITS["control_tokens_from_text"]
            input_ids.extend(ids)
            lengths[place], prompt_lengths[place] = len(ids), prompt_length
        return Made(input_ids, np.array(lengths, dtype=np.int32), np.array(prompt_lengths, dtype=np.int32), notes)

    def _rows_of_turns(self, texts: Texts) -> Made:
        """Return the row of each conversation, with every answer learned."""
        longest, notes = self._config.max_length, texts.notes
        input_ids = array("i")
        lengths, prompt_lengths = ([0] * len(notes) for _ in range(2))
        encoded = self._tokens.encode(texts.texts, longest)
        start = 0
        while start < len(texts.places):
            place = texts.places[start]
            end = start + texts.places[start:].count(place)
            found = encoded[start:end]
            ids, prompt_length = join([(ids, length) for ids, length, _, _ in found])
            if any(forced for _, _, forced, _ in found) or not is_whole(texts.texts[start:end], ids, self._tokens):
                notes[place] |= BITS["boundary_forced"]
            if any(parsed for _, _, _, parsed in found):
                notes[place] |= BITS["control_tokens_from_text"]
            if texts.needs_end[end - 1]:
                ids.append(self._end_token)
            start = end
            if prompt_length >= longest:
                notes[place] = 0
                continue
            if len(ids) > longest:
                notes[place] |= BITS["truncated"]
                del ids[longest:]
                while ids[-1] < 0:  # given, and nothing learned follows
                    ids.pop()
            input_ids.extend(ids)
            lengths[place], prompt_lengths[place] = len(ids), prompt_length
        return Made(input_ids, np.array(lengths, dtype=np.int32), np.array(prompt_lengths, dtype=np.int32), notes)

    def check(self, messages: list[Message]) -> None:
        """Raise DataError, naming the row, if this conversation cannot be a row."""
        try:
            self._texts(messages)
        except DataError as error:
            begin = messages[0]["content"][:60]
            raise DataError(f"{self._config.path!r}, the row that begins {begin!r}: {error}") from None

    def _texts(self, messages: list[Message]) -> tuple[list[PromptText], bool, int]:
        template, all_learned = self._config.template, self._config.loss_on == "all"
        if all_learned and template == "chat" and messages[-1]["role"] != PLAIN_TEXT:
            texts, needs_end_token = turns(messages, self._tokenizer)
        else:
            text, needs_end_token = training_text(messages, template, self._tokenizer)
            texts = [text]
        if needs_end_token and self._end_token is None:
            raise DataError("the tokenizer has no end-of-sequence token, so a response could never end")
        notes = 0
        if needs_end_token and template == "chat" and messages[-1]["role"] != PLAIN_TEXT:
            notes |= BITS["end_token_added"]
        if any([self._tokens.spells_control(message["content"]) for message in messages]):
            notes |= BITS["control_token_text"]
        if not all_learned and any([message["role"] == "assistant" for message in messages[:-1]]):
            notes |= BITS["earlier_turns_unused"]
        if self._marker is not None and any(self._marker in message["content"] for message in messages):
            notes |= BITS["turn_marker_text"]
        return texts, needs_end_token, notes


def tokenise(
    messages: list[Message], config: DataConfig, tokenizer: "PreTrainedTokenizerBase",
) -> tuple[Row | None, bool]:
    """Return one conversation as ``(row, truncated)``. The row is None if the prompt leaves no room for any of the response.
    Raises DataError, naming the row."""
    maker = RowMaker(config, tokenizer)
    maker.check(messages)
    made = maker.make([messages])
    row = Row(made.input_ids.tolist(), int(made.prompt_lengths[0])) if made.lengths[0] else None
    return row, bool(made.notes[0] & BITS["truncated"])
