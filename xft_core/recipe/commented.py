"""Write a recipe as a commented file: above each field, its meaning and the reason for its value."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from xft_core.recipe.sections import Recipe
from xft_core.recipe.sections.base import Section

WIDTH = 110


def commented(values: Mapping[str, Any], reasons: Mapping[str, str], heading: str, all_fields: bool = False) -> str:
    """Return a recipe file with these ``values`` (by ``section.field``); ``all_fields`` adds every other field as a comment.

    ``reasons`` explains the values of some of the fields.
    """
    lines = [*_comment(heading, ""), ""]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            lines += _field(name, name, field, values, reasons, all_fields, "")
            continue
        inside = [line for inner, info in section.model_fields.items()
                  for line in _field(f"{name}.{inner}", inner, info, values, reasons, all_fields, "  ")]
        if inside:
            is_used = any(key.startswith(f"{name}.") for key in values)
            lines += ["", *_comment(field.description or "", ""), f"{name}:" if is_used else f"# {name}:", *inside]
    return "\n".join(lines) + "\n"


def _field(
    key: str, name: str, info: FieldInfo, values: Mapping[str, Any], reasons: Mapping[str, str], all_fields: bool, indent: str,
) -> Iterator[str]:
    if key not in values and not all_fields:
        return
    yield from _comment(info.description or "", indent)
    if key in values:
        if key in reasons:
            yield from _comment(f"Chosen: {reasons[key]}", indent)
        yield f"{indent}{name}: {_yaml(values[key])}"
    else:
        yield f"{indent}# {name}: {_yaml(info.get_default(call_default_factory=True))}"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False,
        break_on_hyphens=False)


def _yaml(value: Any) -> str:
    """Format a value on one line as JSON, which is also YAML and reads back as the same value."""
    return json.dumps(value, ensure_ascii=False)
