"""Format the fields of a configuration, including those of its sections, for a terminal."""

import json
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xft_core.recipe.load import model_of

WIDTH = 110


def field_help(model: type[BaseModel], prefix: str = "") -> str:
    """Return one paragraph per field, with its override name (``section.field``), help text and default."""
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
