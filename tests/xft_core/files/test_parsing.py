"""Any text from outside gives a value or a ValueError, and does so quickly."""

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xft_core.errors import RecipeError
from xft_core.files.parsing import parse_json, parse_yaml
from xft_core.recipe.load import flatten, parse
from xft_core.recipe.sections import Recipe

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=8)


@given(st.text() | st.binary())
def test_any_text_is_a_value_or_a_message(text: str | bytes) -> None:
    try:
        parse_json(text)
    except ValueError as error:
        assert str(error)
    if isinstance(text, str):
        try:
            parse_yaml(text)
        except ValueError as error:
            assert str(error)


@given(st.dictionaries(st.text("abc", min_size=1), st.integers() | st.text("xyz ") | st.booleans() | st.none(), max_size=5))
def test_what_was_written_is_read(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value)) == value
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(("text", "reason"), [
    ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]",
     r"aliases \(\*a\) are not supported: write out the value at line 2, column 8"),
    ("base: &x {seed: 1}\nmore:\n  <<: *x", "aliases"), ("[" * 2000, "nested too deeply"),
    ("seed: 1\nseed: 2", "'seed' is given twice"),
    ("a: " + "1" * 5000, "too long"), ("a: " + "1" + ":59" * 4000, "too long"), ("a: 2026-13-40", "invalid value"),
    ("x" * 1_000_001, "more than the limit of 1,000,000"),
    ("!!python/object:os.system {}", "could not determine a constructor")])
def test_yaml_that_no_recipe_needs_is_refused_at_once(text: str, reason: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(("text", "reason"), [
    ("[" * 100_000, "nested too deeply"), ("9" * 5000, "limit"), ('["\\ud800"]', "half of a surrogate pair"),
    (b"\xff", "decode"), ("{", "Expecting property name")])
def test_json_that_breaks_other_readers_is_a_value_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    assert parse_json('["\\ud83d\\ude00"]') == ["😀"]


@given(st.sampled_from(sorted(flatten(Recipe()))), VALUES)
def test_any_value_of_any_field_is_taken_or_refused_by_name(field: str, value: Any) -> None:
    section, _, name = field.rpartition(".")
    try:
        parse(Recipe, {section: {name: value}} if section else {name: value})
    except RecipeError as error:
        assert section in str(error) and len(str(error)) < 20_000


@pytest.mark.parametrize(("fields", "reason"), [
    ({"model": {"path": "a\0b"}}, "model.path: the value contains a NUL"),
    ({"sft": {"max_grad_norm": float("inf")}}, "sft.max_grad_norm"),
    ({"data": {"path": "\ud800.jsonl"}}, "data.path: the value contains half of a surrogate"),
    ({"sft": {"weight_decay": float("nan")}}, "sft.weight_decay"),
    ({"sft": {"log_steps": 10**400}}, "sft.log_steps: the absolute value exceeds"),
    ({"generate": {"num_samples": 10**9}}, "generate.num_samples"), ({"evaluate": {"k": [0]}}, "evaluate.k.0"),
    ({"evaluate": {"benchmarks": ["x" * 200_000]}}, "evaluate.benchmarks: the value has 200,000 characters")])
def test_values_that_break_later_are_refused_by_the_field(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason) as caught:
        parse(Recipe, fields)
    assert len(str(caught.value)) < 1000
