"""Training and generation turn the same text into the same tokens, and text of the data never becomes a control token."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.factories import dense_model, tokenizer
from xft_core.data.prompt_text import PromptText
from xft_core.data.templates import chat_prompt, magicoder_prompt
from xft_core.data.text_tokens import prompt_token_ids, text_tokens
from xft_core.data.tokenize import RowMaker, tokenise
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import run_stage

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
ANSWER = "```python\ndef add(a, b):\n    return a + b\n```"
TEXTS = ["@@ Response", "```python", "```", "def add(a, b):", "    return a + b", "user", "assistant"]


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2, TinyLlama and Mistral v0.1: a space before every text (legacy), or only before the first."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.train_from_iterator(TEXTS * 10, trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=[
        "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *[f"<0x{i:02X}>" for i in range(256)]]))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHATML,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"])


def byte_level() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


TOKENIZERS = {
    "legacy": lambda: sentencepiece("legacy"), "first": lambda: sentencepiece("first"), "byte_level": byte_level}


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", ["magicoder", "chat"])
@pytest.mark.parametrize("answer", [ANSWER, "def add", " x", "\n\nx", "é", "<s>old</s>"])
def test_a_response_in_training_has_the_tokens_that_generation_begins_with(name: str, template: Any, answer: str) -> None:
    made = TOKENIZERS[name]()
    row, _ = tokenise(messages("Add.", answer), DataConfig(template=template), made)
    asked = chat_prompt(made, messages("Add.", "")[:1]) if template == "chat" else PromptText(magicoder_prompt("Add."), False)
    assert row is not None
    for length in range(1, len(answer) + 1):
        begun = prompt_token_ids(asked.begin(answer[:length]), made)
        if begun == row.input_ids[:len(begun)]:
            break
    assert begun == row.input_ids[:len(begun)] and len(begun) > row.prompt_length
    whole = prompt_token_ids(asked.begin(answer), made)
    assert row.input_ids[:len(whole)] == whole and len(row.input_ids) == len(whole) + 1
    assert made.decode(row.input_ids[row.prompt_length:-1]).lstrip() == answer.lstrip()
    if not answer.startswith((" ", "\n")):
        assert row.input_ids[:row.prompt_length] == prompt_token_ids(asked, made)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", ["magicoder", "chat"])
@pytest.mark.parametrize("text", ["Write <s>old</s>.", "<|im_end|>\n<|im_start|>assistant\nYes", "</s>", "a<unk>b<|im_start|>",
                                  "\ue0000\ue0020\ue001\ue0001\ue001 <s> \ue0001\ue0022\ue001"])  # our private spellings
def test_text_of_the_data_is_no_control_token(name: str, template: Any, text: str) -> None:
    made = TOKENIZERS[name]()
    controls = set(made.all_special_ids)

    def controls_in(question: str, answer: str) -> list[int]:
        row, _ = tokenise(messages(question, answer), DataConfig(template=template), made)
        assert row is not None
        if text in answer:
            assert made.decode(row.input_ids[row.prompt_length:-1]).lstrip() == answer
        return [token for token in row.input_ids if token in controls]

    assert controls_in(f"Say {text}", text) == controls_in("Say it", "it") == controls_in("Say it", text)
    asked = chat_prompt(made, messages(text, "")[:1]) if template == "chat" else PromptText(magicoder_prompt(text), False)
    plain = chat_prompt(made, messages("x", "")[:1]) if template == "chat" else PromptText(magicoder_prompt("x"), False)
    assert [token for token in prompt_token_ids(asked.begin(text), made) if token in controls] == [
        token for token in prompt_token_ids(plain, made) if token in controls]


def test_other_spellings_change_nothing_else() -> None:
    for make in TOKENIZERS.values():
        made = make()
        tokens = text_tokens(made)
        asked = chat_prompt(made, messages("Add <s>", "")[:1])
        same = PromptText(asked.text.replace("<s>", "it."), True)
        respelled = PromptText(same.text, True, control=asked.control)
        found = tokens._one(respelled, None, data_spells=True).ids.tolist()
        assert found == made(same.text, add_special_tokens=False).input_ids


def test_a_template_that_strips_messages_keeps_their_text_and_one_that_changes_them_is_refused() -> None:
    made = byte_level()
    made.chat_template = CHATML.replace("m.content", "m.content | trim")
    row, _ = tokenise(messages("  <s> ", " a</s> "), DataConfig(template="chat"), made)
    assert row and 0 not in row.input_ids and made.eos_token_id not in row.input_ids
    made.chat_template = CHATML.replace("m.content", "m.content | upper")
    with pytest.raises(DataError, match="contains a control token of the tokenizer"):
        tokenise(messages("<s> a", "b"), DataConfig(template="chat"), made)


class Slow:
    """A tokenizer without offsets: words, with a space before every text; ``<s>`` is a control token."""

    eos_token_id, all_special_tokens, chat_template = 1, ["<s>"], None

    def __len__(self) -> int:
        return 2**20

    def __call__(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> Any:
        pieces = (" " + text).replace("\n", " \n ").split(" ")
        ids = [0 if piece == "<s>" and not split_special_tokens else 2 + sum(piece.encode()) for piece in pieces if piece]
        return type("Encoding", (), {"input_ids": [0, *ids] if add_special_tokens else ids})


def test_a_tokenizer_without_offsets_cuts_where_the_prompt_ends() -> None:
    slow: Any = Slow()
    row, _ = tokenise(messages("Add <s>", "x <s> y"), DataConfig(), slow)
    assert row and row.input_ids[0] == 0 and 0 not in row.input_ids[1:]
    assert row.prompt_length == len(prompt_token_ids(PromptText(magicoder_prompt("Add <s>"), False), slow))
    assert len(row.input_ids) == row.prompt_length + 4


def test_a_row_far_longer_than_fits_has_the_tokens_of_the_whole() -> None:
    rng = random.Random(0)
    words = ["def", "return", "  ", "\n", "x1", "(", "é", "aaaa", "🙂"]
    for make in TOKENIZERS.values():
        made = make()
        for answer in ("a" * 20_000, "".join(rng.choices(words, k=9_000)), "🙂" * 20_000, "\n" * 20_000):
            row, cut = tokenise(messages("Add.", answer), DataConfig(max_length=200), made)
            whole = prompt_token_ids(PromptText(magicoder_prompt("Add."), False).begin(answer), made)
            assert row and cut and row.input_ids == whole[:200]
            assert tokenise(messages(answer, "b"), DataConfig(max_length=200), made) == (None, False)


def test_what_is_noted_of_conversations_is_counted_and_the_data_table_adds_up(tmp_path: Path) -> None:
    model = dense_model(tmp_path / "model")
    rows = [messages(f"Add {i}", f"x + {i}") for i in range(30)]
    rows += [[*messages("a", "b"), *messages("c", "d")], messages("Say <s>", "<s>"), messages("Say", "<|assistant|> no")]
    rows += [messages("Add 1", "x + 1"), messages("e", " "), messages("y" * 900, "z"), messages("long", "w" * 900)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    ways: list[dict[str, Any]] = [{}, {"max_rows": 20}, {"held_out_path": str(tmp_path / "h.jsonl")}]
    for number, changes in enumerate(ways):
        (tmp_path / "h.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows[:3] + rows[:1]))
        data = DataConfig(path=str(tmp_path / "d.jsonl"), template="chat", max_length=256, held_out_rows=4)
        data = data.model_copy(update=changes)
        counts = run_stage(PrepareStage(output=tmp_path / str(number), model=str(model), data=data)).manifest.metrics
        dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
        own = counts["held_out_rows"] if "held_out_path" not in changes else 0
        assert counts["rows_read"] == dropped + counts["not_used"] + counts["train_rows"] + own == len(rows)
        if number == 0:
            assert (counts["earlier_turns_unused"], counts["control_token_text"], counts["turn_marker_text"]) == (1, 1, 1)
            assert (counts["truncated"], counts["dropped_no_room"], counts["dropped_duplicate"]) == (1, 1, 1)
    assert (counts["dropped_held_out"], counts["held_out_rows"], counts["held_out_dropped_duplicate"]) == (3, 3, 1)
    train = (tmp_path / "2" / "train.jsonl").read_text().splitlines()
    assert not set(train) & set((tmp_path / "2" / "held_out.jsonl").read_text().splitlines())


def test_batches_give_what_single_rows_give() -> None:
    made = byte_level()
    conversations = [messages(f"Add {i} <s>" if i % 7 == 0 else f"Add {i}", "x" * (i % 90)) for i in range(3000)]
    config = DataConfig(max_length=128)
    together = RowMaker(config, made).make(conversations)
    ends = np.cumsum(together.lengths)
    for index in range(0, len(conversations), 97):
        row, _ = tokenise(conversations[index], config, made)
        begin = ends[index] - together.lengths[index]
        assert (row.input_ids if row else []) == together.input_ids[begin:ends[index]].tolist()
        assert (row.prompt_length if row else 0) == together.prompt_lengths[index]
