"""A chat: the model's prompts, the output shown, and the history; with dense, upcycled and merged models."""

from pathlib import Path

import pytest

from tests.factories import dense_model
from xft_core.data.prompt_text import PromptText
from xft_core.data.templates import chat_prompt, magicoder_prompt
from xft_core.data.text_tokens import prompt_token_ids
from xft_core.errors import RecipeError
from xft_core.generation.chat import Chat
from xft_core.recipe.sections import GenerateConfig, UpcycleConfig
from xft_core.stages.configs import UpcycleStage
from xft_core.stages.run import run_stage

CONFIG = GenerateConfig(max_new_tokens=12, precision="fp32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_model(tmp_path_factory.mktemp("model"))


def spy(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that collects the model's prompts from now on."""
    given: list[list[int]] = []
    complete = chat._completer.complete

    def noted(prompts, seed):  # type: ignore[no-untyped-def]
        given.extend(map(list, prompts))
        return complete(prompts, seed)

    monkeypatch.setattr(chat._completer, "complete", noted)
    return given


def test_the_models_own_template_holds_the_whole_conversation(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, shown = Chat(model, CONFIG), list[str]()
    given = spy(chat, monkeypatch)
    first = chat.ask("One?", shown.append)
    assert "".join(shown) == first.text and first.new_tokens > 1
    chat.ask("Two </s>?", shown.append)  # text that spells a control token stays text
    said = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": first.text},
            {"role": "user", "content": "Two </s>?"}]
    assert given[1] == prompt_token_ids(chat_prompt(chat.tokenizer, said), chat.tokenizer)
    chat.begin_anew()
    assert chat.ask("One?", shown.append) == first


def test_the_papers_prompt_holds_one_instruction(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(model, CONFIG, "magicoder")
    given = spy(chat, monkeypatch)
    for question in ("One?", "Two?"):
        chat.ask(question, lambda _: None)
    assert given[1] == prompt_token_ids(PromptText(magicoder_prompt("Two?"), False), chat.tokenizer)
    assert Chat(Path("xft_core/demo/model"), CONFIG).template == "magicoder"  # the model has no chat template


def test_an_upcycled_model_answers_as_the_dense_one_that_it_is(model: Path, tmp_path: Path) -> None:
    run_stage(UpcycleStage(output=tmp_path / "moe", model=str(model), upcycle=UpcycleConfig(
        num_experts=4, num_experts_per_tok=3)))
    assert Chat(tmp_path / "moe", CONFIG).ask("One?", str) == Chat(model, CONFIG).ask("One?", str)


def test_what_was_interrupted_is_forgotten(model: Path) -> None:
    def stop(_: str) -> None:
        raise KeyboardInterrupt

    chat = Chat(model, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("One?", stop)
    assert not chat.messages


def test_a_conversation_that_fills_the_context_says_so(tmp_path: Path) -> None:
    chat = Chat(dense_model(tmp_path / "short", max_position_embeddings=64), CONFIG)
    assert chat.ask("a" * 400, str).finish_reason == "prompt_too_long"
    assert not chat.messages


def test_what_cannot_be_is_told(model: Path) -> None:
    with pytest.raises(RecipeError, match="Use --template magicoder"):
        Chat(Path("xft_core/demo/model"), CONFIG, "chat")
    with pytest.raises(RecipeError, match="backend is vllm, which cannot chat"):
        Chat(model, GenerateConfig(backend="vllm"))
