"""Chat with a model in the template that it was tuned with. Its answers are shown while they are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import TextStreamer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.data.prompt_text import PromptText
from xft_core.data.templates import Message, chat_prompt, magicoder_prompt
from xft_core.data.text_tokens import prompt_token_ids
from xft_core.errors import RecipeError
from xft_core.generation.completer import Completion
from xft_core.generation.with_transformers import TransformersCompleter
from xft_core.models.config import DTYPES
from xft_core.models.loading import load_model, load_tokenizer
from xft_core.recipe.sections import GenerateConfig

ChatTemplate = Literal["auto", "chat", "magicoder"]


class Chat:
    """A model directory (dense, upcycled or stock) and the conversation so far.

    ``template``: chat is the tokenizer's own template, which holds the entire conversation; magicoder is the paper's prompt,
    which holds only one instruction, without anything before it; auto is chat if the tokenizer has a chat template, else
    magicoder.
    """

    def __init__(self, directory: Path, config: GenerateConfig, template: ChatTemplate = "auto", seed: int = 0) -> None:
        """Load the model. Raises CheckpointError if this fails, RecipeError for a back end that cannot show answers while they
        are written, and for the template chat if the tokenizer has none."""
        if config.backend != "transformers":
            raise RecipeError(f"generate.backend is {config.backend}, which cannot chat. Remove it, or set it to transformers.")
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(directory)
        has_template = self.tokenizer.chat_template is not None
        if template == "chat" and not has_template:
            raise RecipeError(f"The tokenizer of {str(directory)!r} has no chat template. Use --template magicoder.")
        self.template = ("chat" if has_template else "magicoder") if template == "auto" else template
        self.seed, self.messages = seed, list[Message]()
        self._completer = TransformersCompleter(
            load_model(directory, DTYPES[config.precision]), self.tokenizer, config, stops=())

    def ask(self, question: str, show: Callable[[str], object]) -> Completion:
        """Return the model's answer. ``show`` receives it in pieces as they are written.

        The question and its answer are kept, but not if the answer was unfinished: interrupted, or without room in the model's
        context (``finish_reason`` is then prompt_too_long). Raises DataError for a question that the chat template rejects.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": question}]
        prompt = (chat_prompt(self.tokenizer, asked) if self.template == "chat"
                  else PromptText(magicoder_prompt(question), False))
        self._completer.streamer = _Shown(self.tokenizer, show)
        [answer] = self._completer.complete([prompt_token_ids(prompt, self.tokenizer)], self.seed)
        if self.template == "chat" and answer.finish_reason != "prompt_too_long":
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer

    def begin_anew(self) -> None:
        """Forget the conversation."""
        self.messages = []


class _Shown(TextStreamer):
    """Passes complete words to a function instead of the terminal."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        self._show = show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> Any:
        """See TextStreamer."""
        self._show(text)
