"""The fields of a configuration as text for a terminal, those of its sections among them."""

import json
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xft_core.recipe.load import model_of

WIDTH = 110


def field_help(model: type[BaseModel], prefix: str = "") -> str:
    """One paragraph for each field, by the name that an override gives it (``section.field``), with its default."""
    return "\n".join(_paragraphs(model, prefix))


def _paragraphs(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        inner = model_of(info.annotation)
        text = f"{prefix}{name}: {info.description}{'' if inner else _default(info)}"
        yield textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
        if inner:
            yield from _paragraphs(inner, f"{prefix}{name}.")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return " [must be given]"
    value = info.get_default(call_default_factory=True)
    return " [default: none]" if value is None else f" [default: {json.dumps(value, ensure_ascii=False, default=str)}]"
