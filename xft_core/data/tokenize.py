"""Conversations to token sequences: prompt and response, cut to the longest length."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.data.rows import Row
from xft_core.data.templates import Message, training_text, turn_marker
from xft_core.data.text_tokens import PromptText, text_tokens
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig

BATCH = 1024  # conversations that are tokenised at once
BATCH_CHARACTERS = 2**24  # fewer of them where they are long
# What is counted of rows that are used: each with the sentence that the log has of it.
NOTED = {
    "truncated": "responses cut at data.max_length",
    "earlier_turns_unused": "earlier answers of conversations, which are given and not learned: only the last one is",
    "control_token_text": "rows whose text spells a control token of the tokenizer: it stays text",
    "control_tokens_from_text": "rows in which text became a control token, which this tokenizer cannot prevent",
    "turn_marker_text": "rows whose text spells what the chat template begins an answer with: a model cannot tell them apart",
    "end_token_added": "responses that the chat template ends with no token of its own: the end-of-sequence token is put "
                       "after them, so that a tuned model can stop",
    "boundary_forced": "rows without a token boundary where the response begins: prompt and response were tokenised apart",
}
Made = tuple[Row | None, frozenset[str]]  # a conversation's row, and which of NOTED are to be counted for it


def made_rows(
    conversations: Iterable[list[Message]], config: DataConfig, tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Made]:
    """Every conversation's row, in order, and what is to be counted of it. A response that does not fit is cut (and then has
    no end token); a prompt that leaves no room for any of it gives None. Raises DataError, naming the row.

    Batches are tokenised in a thread, on all cores, while the next one is made.
    """
    end_token = tokenizer.eos_token_id
    if end_token is None and config.template == "magicoder":
        raise DataError(f"{config.path!r}: the tokenizer has no end-of-sequence token, so a response could never end")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # forks warn otherwise, and there are none while this runs
    tokens, marker = text_tokens(tokenizer), turn_marker(tokenizer) if config.template == "chat" else None

    def make(batch: list[tuple[PromptText, bool, set[str]]]) -> list[Made]:
        found = tokens.encode([text for text, _, _ in batch], config.max_length)
        made: list[Made] = []
        for (_, needs_end_token, noted), item in zip(batch, found, strict=True):
            ids = item.ids
            if needs_end_token:
                ids.append(end_token)
            if item.prompt_length >= config.max_length:
                made.append((None, frozenset()))
                continue
            if len(ids) > config.max_length:
                noted.add("truncated")
            if item.forced:
                noted.add("boundary_forced")
            if item.parsed:
                noted.add("control_tokens_from_text")
            made.append((Row(ids[:config.max_length], item.prompt_length), frozenset(noted)))
        return made

    def texts() -> Iterator[tuple[PromptText, bool, set[str]]]:
        for messages in conversations:
            try:
                text, needs_end_token = training_text(messages, config.template, tokenizer)
                if needs_end_token and end_token is None:
                    raise DataError("the tokenizer has no end-of-sequence token, so a response could never end")
            except DataError as error:
                raise DataError(f"{config.path!r}, the row that begins {messages[0]['content'][:60]!r}: {error}") from None
            noted = {"end_token_added"} if needs_end_token and config.template == "chat" else set()
            if any(tokens.spells_control(message["content"]) for message in messages):
                noted.add("control_token_text")
            if any(message["role"] == "assistant" for message in messages[:-1]):
                noted.add("earlier_turns_unused")
            if marker is not None and any(marker in message["content"] for message in messages):
                noted.add("turn_marker_text")
            yield text, needs_end_token, noted

    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for batch in _batches(texts()):
            following = thread.submit(make, batch)
            if waiting is not None:
                yield from waiting.result()
            waiting = following
        if waiting is not None:
            yield from waiting.result()


def _batches(texts: Iterator[tuple[PromptText, bool, set[str]]]) -> Iterator[list[tuple[PromptText, bool, set[str]]]]:
    batch, size = [], 0
    for item in texts:
        batch.append(item)
        size += len(item[0].text)
        if len(batch) == BATCH or size > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenise(messages: list[Message], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Row | None, bool]:
    """One conversation as ``(row, truncated)``; see ``made_rows``."""
    (row, noted), = made_rows([messages], config, tokenizer)
    return row, "truncated" in noted


def tokenised(
    conversations: list[list[Message]], config: DataConfig, tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Row | None], int]:
    """Every conversation as ``made_rows`` has it, and how many were truncated. Raises DataError, naming the row."""
    made = list(made_rows(conversations, config, tokenizer))
    return [row for row, _ in made], sum("truncated" in noted for _, noted in made)
