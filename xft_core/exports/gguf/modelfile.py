"""An Ollama Modelfile: the GGUF file, the text around a question, and the stops that end an answer.

The text is the template that the model was tuned with. A chat template is a program. Its parts are found by rendering
conversations of markers. If the joined parts do not reproduce the template's output, there is no Modelfile.
"""

from collections.abc import Sequence
from typing import Any

from xft_core.data.templates import magicoder_prompt
from xft_core.errors import CheckpointError, first_line

_SYSTEM, _USER, _ANSWER = "\ue000s\ue001", "\ue000u\ue001", "\ue000a\ue001"


def modelfile(file_name: str, template: str, stops: list[str], context: int) -> str:
    """Return the Modelfile's text. ``stops``: texts that end an answer; ``context``: context length in tokens."""
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{template}"""', f"PARAMETER num_ctx {context}"]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote a value for Ollama, which takes the text between the quotes literally, without escapes."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def magicoder_template() -> str:
    """Return the paper's prompt as an Ollama template."""
    return magicoder_prompt("{{ .Prompt }}") + "{{ .Response }}"


def begins_once(tokenizer: Any, bos: str) -> bool:
    """Return whether the begin token starts a conversation and occurs nowhere else, so that the file can add it. In ChatML, it
    may also start every turn. Raises CheckpointError for a template that fails."""
    try:
        text = _rendered(tokenizer, ("user", "assistant", "user"))
    except Exception as error:  # templates are programs and can raise anything
        raise _not_converted(error) from None
    return text.startswith(bos) and text.count(bos) == 1


def chat_template(tokenizer: Any, bos: str | None) -> str:
    """Return the tokenizer's chat template as an Ollama template, without the begin token that the file itself adds (``bos``).

    Raises CheckpointError if conversations are not composed of parts that are the same in every conversation.
    """
    def written(*roles: str, ask: bool = False) -> str:
        text = _rendered(tokenizer, roles, ask)
        return text.removeprefix(bos) if bos else text

    try:
        first, exchange = written("user"), written("user", "assistant")
        later = written("user", "assistant", "user").removeprefix(exchange)
        asks = written("user", ask=True).removeprefix(first)
        head, answer = first.removesuffix(later), exchange.removeprefix(first)
        expected: dict[tuple[str, ...], str] = {("user", "assistant", "user"): head + later + answer + later + asks}
        try:
            system = written("system", "user").removesuffix(later)
        except Exception:
            system = ""
        if _SYSTEM in system:
            expected[("system", "user", "assistant", "user")] = system + later + answer + later + asks
        same = all(written(*roles, ask=True) == text for roles, text in expected.items())
    except Exception as error:  # as in begins_once
        raise _not_converted(error) from None
    parts = (head, system, later, answer, asks)
    if not same or _USER not in later or _ANSWER not in answer or any("{{" in part or '"""' in part for part in parts):
        raise CheckpointError(
            "The tokenizer's chat template does not compose conversations of parts that are the same in each, as an Ollama "
            "template does. Write the Modelfile by hand, for a GGUF file made without one.")
    start = head
    if _SYSTEM in system:
        otherwise = f"{{{{ else }}}}{head}" if head else ""
        start = f"{{{{ if .System }}}}{system.replace(_SYSTEM, '{{ .System }}')}{otherwise}{{{{ end }}}}"
    return (
        f'{start}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{later.replace(_USER, "{{ .Content }}")}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer.replace(_ANSWER, "{{ .Content }}")}{{{{ end }}}}{{{{ end }}}}{asks}')


def _rendered(tokenizer: Any, roles: Sequence[str], ask: bool = False) -> str:
    """Return a conversation of markers as the tokenizer's chat template writes it."""
    contents = {"system": _SYSTEM, "user": _USER, "assistant": _ANSWER}
    messages = [{"role": role, "content": contents[role]} for role in roles]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))


def _not_converted(error: Exception) -> CheckpointError:
    return CheckpointError(f"The tokenizer's chat template cannot be converted to an Ollama template: {first_line(error)}")
