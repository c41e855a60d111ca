"""Loss on every answer of a conversation: exactly the answers and their end tokens, with tools and system messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories import CHAT_TEMPLATE, dense_model, tokenizer
from xft_core.data.conversation import Conversation
from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.rows import Rows, load_rows, rows_of
from xft_core.data.tokenize import tokenise
from xft_core.errors import DataError
from xft_core.recipe.sections import DataConfig
from xft_core.stages.configs import PrepareStage
from xft_core.stages.run import run_stage
from xft_core.store.results.prepare import RefusedFile

ALL = DataConfig(path="d.jsonl", template="chat", loss_on="all", max_length=256)
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two?"}, {"role": "assistant", "content": "2"}]
WITH_TOOLS = (
    "{% if tools %}<|tools|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    + CHAT_TEMPLATE.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"))
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "add"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "two"}, {"role": "assistant", "content": "It is two."}]


def learned(rows: Rows, tokens: Any) -> str:
    """Return the text of the tokens that the loss counts, with | between separate pieces."""
    batch = (packed := PackedRows(rows, 256, packing=False)).collate([packed[0]])
    found, before = "", True
    for label in batch["labels"][0].tolist():
        found += "" if label == IGNORED else ("|" if before else "") + tokens.decode([label])
        before = label == IGNORED
    return found


def row_of(messages: list[dict[str, Any]], config: DataConfig = ALL, template: str = CHAT_TEMPLATE) -> tuple[Rows, Any]:
    tokens = tokenizer()
    tokens.chat_template = template
    row, _ = tokenise(messages, config, tokens)
    assert row is not None
    return rows_of([row]), tokens


def test_every_answer_with_its_end_is_learned_and_nothing_else() -> None:
    rows, tokens = row_of(SAID)
    assert learned(rows, tokens) == "|1</s>|2</s>"
    last, _ = row_of(SAID, ALL.model_copy(update={"loss_on": "last"}))
    assert learned(last, tokens) == "|2</s>"
    assert rows[0][0].tolist() == last[0][0].tolist()  # the same text, but more of it is given
    assert tokens.decode(rows[0][0]).startswith("<|system|>\nBe brief.</s>\n<|user|>\none?</s>\n<|assistant|>\n1</s>")


def test_an_answer_before_the_first_question_is_given_and_not_learned() -> None:
    greeting = {"role": "assistant", "content": "Hello"}
    for said in ([greeting, *SAID[1:]], [SAID[0], greeting, *SAID[1:]]):
        rows, tokens = row_of(said)
        assert learned(rows, tokens) == "|1</s>|2</s>" and "Hello" in tokens.decode(rows[0][0])


def test_a_conversation_with_one_answer_is_the_same_either_way() -> None:
    for config in (ALL, ALL.model_copy(update={"loss_on": "last"})):
        rows, tokens = row_of(SAID[1:3], config)
        assert learned(rows, tokens) == "|1</s>"


def test_text_that_spells_a_control_token_stays_text_in_every_turn() -> None:
    said = [message | {"content": message["content"] + "</s>"} for message in SAID]
    rows, tokens = row_of(said)
    assert (rows[0][0] == tokens.eos_token_id).sum() == len(said)  # only the template's own
    assert learned(rows, tokens).replace("|", "") == "1</s></s>2</s></s>"


def test_a_long_conversation_is_cut_behind_the_last_answer_that_fits() -> None:
    rows, tokens = row_of(SAID, ALL.model_copy(update={"max_length": len(row_of(SAID)[0][0][0]) - 4}))
    assert learned(rows, tokens) == "|1</s>"


def test_calls_of_tools_and_their_answers() -> None:
    rows, tokens = row_of(Conversation(CALLED, tools=[TOOL]), template=WITH_TOOLS)
    text = tokens.decode(rows[0][0])
    assert text.startswith("<|tools|>\n{") and "<|tool|>\ntwo</s>" in text
    first, second = learned(rows, tokens).strip("|").split("|")
    assert first.startswith("<call>{") and '"name": "add"' in first and first.endswith("</call></s>")
    assert second == "It is two.</s>"
    only_call, _ = row_of(Conversation(CALLED[:2], tools=[TOOL]), ALL.model_copy(update={"loss_on": "last"}), WITH_TOOLS)
    assert learned(only_call, tokens) == f"|{first}"


@pytest.mark.parametrize(("messages", "template", "message"), [
    (Conversation(CALLED, tools=[TOOL]), CHAT_TEMPLATE, "no place for tools: it leaves"),
    (CALLED, CHAT_TEMPLATE, "no place for tool calls: it"),
    (SAID, CHAT_TEMPLATE.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"),
     "no place for messages of the role system: it leaves out 'Be brief.'"),
    (SAID, "{{ raise_exception('no system') if messages[0].role == 'system' }}", "rejects the conversation"),
    (SAID, CHAT_TEMPLATE.replace("{{ message.content }}", "{{ message.content if loop.last else '...' }}")
     .replace("...", "{{ '' }}Be brief."), "writes an answer differently once other messages follow"),
])
def test_what_a_template_cannot_hold_is_refused(messages: list[dict[str, Any]], template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        row_of(messages, template=template)


def test_rows_that_the_template_refuses_are_counted_and_may_be_dropped(tmp_path: Path) -> None:
    model = dense_model(tmp_path / "model")
    rows = [{"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": str(number)}]}
            for number in range(12)]
    rows += [{"messages": [*CALLED[:3], {"role": "assistant", "content": f"answer {number}"}]} for number in range(3)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ALL.model_copy(update={"path": str(tmp_path / "d.jsonl"), "held_out_rows": 2})
    with pytest.raises(DataError, match=r"the row that begins 'add': .*no place for .*This affects 3 of 15 rows"):
        run_stage(PrepareStage(output=tmp_path / "stop", model=str(model), data=data))
    dropping = data.model_copy(update={"unusable_rows": "drop"})
    counts = run_stage(PrepareStage(output=tmp_path / "drop", model=str(model), data=dropping)).manifest.metrics
    assert counts["dropped_unusable"] == 3 and counts["dropped_no_room"] == 0
    assert counts["rows_read"] == 15 == 3 + counts["train_rows"] + counts["held_out_rows"]
    refused = RefusedFile.read(tmp_path / "drop")
    assert refused is not None and len(refused.rows) == 3 and "no place for" in refused.rows[0]
    assert len(load_rows(tmp_path / "drop", "train")) == counts["train_rows"]


def test_response_tokens_are_counted_over_all_turns(tmp_path: Path) -> None:
    model = dense_model(tmp_path / "model")
    rows = [{"messages": [{**message, "content": f"{message['content']} {number}"} for message in SAID]} for number in range(8)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ALL.model_copy(update={"path": str(tmp_path / "d.jsonl"), "held_out_rows": 1})
    counts = run_stage(PrepareStage(output=tmp_path / "out", model=str(model), data=data)).manifest.metrics
    train = load_rows(tmp_path / "out", "train")
    of_labels = sum(int((train.labels(row, IGNORED) != IGNORED).sum()) for row in range(len(train)))
    assert counts["train_response_tokens"] == of_labels > 0 and "earlier_turns_unused" not in counts
    assert train.select([2, 0])[1][0].tolist() == train[0][0].tolist()
    assert train.between(1, 3).labels(0, IGNORED).tolist() == train.labels(1, IGNORED).tolist()


def test_plain_text_is_learned_from_its_first_token() -> None:
    text = ALL.model_copy(update={"format": "text"})
    rows, tokens = row_of([{"role": "plain text", "content": "def f(x):"}], text)
    assert learned(rows, tokens).strip("|") == "def f(x):</s>"
