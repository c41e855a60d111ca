"""An Ollama Modelfile: the file, the text around a question, and what ends an answer.

The text is that which the model was tuned in. Of a chat template, a program, the parts are found by writing conversations of
markers with it; where parts put together do not give what the template writes, there is no Modelfile.
"""

from typing import Any

from xft_core.data.templates import magicoder_prompt
from xft_core.errors import CheckpointError

_SYSTEM, _USER, _ANSWER = "\ue000s\ue001", "\ue000u\ue001", "\ue000a\ue001"


def modelfile(file_name: str, template: str, stops: list[str], context: int) -> str:
    """The Modelfile's text. ``stops``: what ends an answer, as text; ``context``: tokens that the model takes."""
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{template}"""', f"PARAMETER num_ctx {context}"]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A value as Ollama reads it: what is between the quotes is taken as it is, there are no escapes."""
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def magicoder_template() -> str:
    """The paper's prompt, as Ollama's template."""
    return magicoder_prompt("{{ .Prompt }}") + "{{ .Response }}"


def chat_template(tokenizer: Any, bos: str | None) -> str:
    """The tokenizer's chat template as Ollama's, without a token at the start that the file itself adds (``bos``).

    Raises CheckpointError where a conversation is not put together of parts that are the same in every conversation.
    """
    def written(*roles: str, ask: bool = False) -> str:
        contents = {"system": _SYSTEM, "user": _USER, "assistant": _ANSWER}
        messages = [{"role": role, "content": contents[role]} for role in roles]
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
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
    except Exception as error:  # templates are programs that raise what they like
        raise CheckpointError(f"The tokenizer's chat template makes no Ollama template: {error}") from None
    parts = (head, system, later, answer, asks)
    if not same or _USER not in later or _ANSWER not in answer or any("{{" in part or '"""' in part for part in parts):
        raise CheckpointError(
            "The tokenizer's chat template does not put conversations together of parts that are the same in each, as an "
            "Ollama template does. Write the Modelfile by hand, beside a GGUF file made without one.")
    start = head
    if _SYSTEM in system:
        otherwise = f"{{{{ else }}}}{head}" if head else ""
        start = f"{{{{ if .System }}}}{system.replace(_SYSTEM, '{{ .System }}')}{otherwise}{{{{ end }}}}"
    return (
        f'{start}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{later.replace(_USER, "{{ .Content }}")}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer.replace(_ANSWER, "{{ .Content }}")}{{{{ end }}}}{{{{ end }}}}{asks}')
