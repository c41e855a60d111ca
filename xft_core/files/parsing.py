"""Parse untrusted JSON and YAML: any text quickly gives either a value or a one-line ValueError.

The libraries' own readers also raise RecursionError for deep nesting, and accept input that causes failures later: half of a
surrogate pair, a duplicate key, aliases that expand to more than fits into memory.
"""

import json
import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

DEEPEST_YAML, LONGEST_YAML, LONGEST_NUMBER = 20, 1_000_000, 100
_SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # a value and its end; ignores other text
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str) -> Any:
    """Parse a JSON text. Raises ValueError (json.JSONDecodeError, with its position, for a syntax error)."""
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = _value(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if "\\u" in text and _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it contains half of a surrogate pair (\\ud800 to \\udfff), which is not valid Unicode") from None
    return value


def _value(text: str) -> Any:
    try:
        value, end = _SCAN(text, 0)
    except StopIteration:
        return json.loads(text)  # raises a precise error if the text is invalid
    return value if text[end:] in ("", "\n") else json.loads(text)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text of plain values, lists and mappings. Raises ValueError, also for input that recipes do not need:
    aliases, duplicate keys, texts of more than a million characters."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has {len(text):,} characters, more than the limit of {LONGEST_YAML:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        message = str(error).replace('in "<unicode string>", ', "at ")  # PyYAML's name for a text
        raise ValueError(" ".join(message.split())[:500]) from None
    except (ValueError, ArithmeticError, TypeError, AttributeError, LookupError) as error:
        # For example, a date in the 13th month, or a value that does not match its tag.
        raise ValueError(f"it contains an invalid value ({str(error)[:100]})") from None


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(
                None, None, f"aliases (*{event.anchor}) are not supported: write out the value", event.start_mark)
        if self.depth == DEEPEST_YAML:
            raise ComposerError(None, None, "it is nested too deeply", self.peek_event().start_mark)
        self.depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for name in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if name in seen:
                raise ConstructorError(None, None, f"{name[:100]!r} is given twice", node.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> Any:
        """An int or a float with a limited length, so that reading it is fast."""
        if len(self.construct_scalar(node)) > LONGEST_NUMBER:
            raise ConstructorError(None, None, "a number is too long", node.start_mark)
        return self.construct_yaml_float(node) if node.tag.endswith("float") else self.construct_yaml_int(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.number)
