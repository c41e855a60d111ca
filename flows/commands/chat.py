"""``xft chat``: talk to a model in the terminal."""

import sys
from argparse import Namespace
from contextlib import suppress

from flows.commands.model_directory import model_directory
from tasks.settings import settings
from xft_core.generation.chat import Chat
from xft_core.planning.machine import this_machine
from xft_core.recipe.load import parse
from xft_core.recipe.sections import GenerateConfig
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.process import quiet_libraries

HOW = {
    "chat": "It sees the entire conversation, in its tokenizer's chat template.",
    "magicoder": "It sees the paper's prompt, which holds one instruction: it does not know earlier messages."}
COMMANDS = "/new starts a new conversation; /quit or Ctrl-D ends the chat; Ctrl-C stops an answer."
ENDED = {
    "length": "[cut off by generate.max_new_tokens or by the end of the model's context]",
    "prompt_too_long": "The conversation fills the model's context. /new starts a new one."}


def run(options: Namespace) -> int:
    """Read lines and answer them until the input ends; returns the exit status. Raises XftError for an unusable model or
    setting."""
    quiet_libraries()
    given = [item.removeprefix("generate.") for item in options.set]
    config = parse(GenerateConfig, {"precision": _precision()}, given, where="generate")
    chat = Chat(model_directory(options.model), config, options.template, options.seed)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines)
        print(f"{options.model}. {HOW[chat.template]}\n{COMMANDS}")
    while True:
        try:
            question = input("\n> " if is_terminal else "").strip()
        except EOFError:
            return ExitCode.DONE
        if question == "/quit":
            return ExitCode.DONE
        if question == "/new":
            chat.begin_anew()
        elif question:
            _answer(chat, question)


def _answer(chat: Chat, question: str) -> None:
    try:
        answer = chat.ask(question, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print("\n[stopped; the question is forgotten]", flush=True)
        return
    print("" if answer.finish_reason == "stop" else "\n" + ENDED[answer.finish_reason], flush=True)


def _precision() -> str:
    return "fp32" if this_machine(settings().artifacts).device_memory is None else "bf16"
