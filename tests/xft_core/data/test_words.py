import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xft_core.data.words import words_of
from xft_core.demo import __file__ as demo_file

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
CODE = (
    "def add(left, right=0):\n    '''It's the sum; they'll see: a+b, IT'S 12345.'''\n"
    "\treturn left + right  # 3.14\r\n\r\n\n  if x_1 != y[2]:\n")


def split(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior)


def byte_level(use_regex: bool = True, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def tokenizer(*parts: pre_tokenizers.PreTokenizer, normalizer: Any = None) -> Tokenizer:
    """Return a small tokenizer trained on code, with one token for <end>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(list(parts)) if len(parts) > 1 else parts[0]
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator([CODE * 3], trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<end>"]))
    return made


KNOWN = {
    "gpt2": tokenizer(byte_level()),
    "smollm": tokenizer(pre_tokenizers.Digits(individual_digits=True), byte_level()),
    "starcoder": tokenizer(pre_tokenizers.Digits(individual_digits=False), byte_level()),
    "demo": tokenizer(split(r"[\n0-9]"), byte_level()),
    "some digits": tokenizer(split(r"[\r\n5-9]+"), byte_level()),
    "punctuation": tokenizer(split(r"[0-9._']"), byte_level()),
    "qwen": tokenizer(split(QWEN), byte_level(use_regex=False), normalizer=normalizers.NFC()),
    "llama3": tokenizer(split(LLAMA3), byte_level(use_regex=False)),
    "deepseek": tokenizer(
        split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), pre_tokenizers.Digits(individual_digits=True),
        byte_level(use_regex=False), normalizer=normalizers.Sequence([])),
}


@pytest.mark.parametrize("name", KNOWN)
def test_tokens_of_ascii_text_are_those_of_the_tokenizer(name: str) -> None:
    whole = KNOWN[name]
    words = words_of(json.loads(whole.to_str()), whole)
    assert words is not None
    rng = random.Random(1)
    texts = [CODE, "", " ", "\x00", "a" * 500, *("".join(rng.choices(CODE + "\x1c\x1f\x7f\v\f", k=200)) for _ in range(200))]
    for text in texts * 2:  # the second time from the cache
        found = words.ids(text)
        assert found is not None and list(memoryview(found).cast("i")) == whole.encode(text).ids, text


def test_the_demo_model_has_one() -> None:
    whole = Tokenizer.from_file(str(Path(demo_file).parent / "model" / "tokenizer.json"))
    assert words_of(json.loads(whole.to_str()), whole) is not None


@pytest.mark.parametrize("text", ["é", "a<end>b", "ſ", "\u2028"])
def test_other_text_and_what_an_added_token_is_in_are_left_to_the_tokenizer(text: str) -> None:
    words = words_of(json.loads(KNOWN["qwen"].to_str()), KNOWN["qwen"])
    assert words is not None and words.ids(text) is None


@pytest.mark.parametrize("parts", [
    [byte_level(add_prefix_space=True)],
    [pre_tokenizers.Metaspace()],
    [split(r"\s+", "removed"), byte_level()],
    [split(r"\p{Greek}|\p{L}+"), byte_level(use_regex=False)],
    [split(r"^\w+"), byte_level(use_regex=False)],  # the start of a line in the tokenizer, the start of the text here
    [split(r"\h+"), byte_level(use_regex=False)],  # hexadecimal digits in the tokenizer
], ids=["prefix space", "metaspace", "removed", "unknown class", "line", "escape"])
def test_a_tokenizer_that_python_might_read_otherwise_has_none(parts: list[pre_tokenizers.PreTokenizer]) -> None:
    whole = tokenizer(*parts)
    assert words_of(json.loads(whole.to_str()), whole) is None


def test_words_that_are_not_the_tokenizers_own_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xft_core.data.words.GPT2", r"\p{L}+|\s+|[^\s\p{L}]+")
    assert words_of(json.loads(KNOWN["gpt2"].to_str()), KNOWN["gpt2"]) is None
