"""Structured extraction: JSON against a schema, and field by field against the right record.

Fields of a row: ``schema``, a JSON schema (draft 2020-12, references within it alone); ``record``, the right object. base: the
answer is JSON and valid. plus: it is the record. score: F1 over fields, each a path to a leaf with its value; items of a list
share one path, so their order does not count for the score.
"""

import json
from collections import Counter
from typing import Any


def judge(problem: dict[str, Any], output: Any) -> Any:
    """Whether the answer is valid, whether it is right, and the share of its fields that are."""
    try:
        found = json.loads(output, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return {"base": False, "score": 0.0, "detail": f"the answer is no JSON: {error}"}
    expected = problem["record"]
    score = field_f1(found, expected)
    complaint = invalid(found, problem["schema"])
    if complaint:
        return {"base": False, "score": score, "detail": complaint}
    right = canonical(found) == canonical(expected)
    wrong = fields(found) - fields(expected) | fields(expected) - fields(found)
    return {"base": True, "plus": right, "score": score,
            "detail": "" if right else f"wrong: {', '.join(sorted({path for path, _ in wrong})) or 'order'}"}


def invalid(value: Any, schema: Any) -> Any:
    """What the schema says against a value; None for nothing."""
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

    error = next(iter(Draft202012Validator(schema).iter_errors(value)), None)
    return None if error is None else f"not valid at {error.json_path}: {error.message}"


def field_f1(found: Any, expected: Any) -> Any:
    """The harmonic mean of precision and recall over fields; 1 where neither has any."""
    given, right = fields(found), fields(expected)
    if not given and not right:
        return 1.0
    return 2 * (given & right).total() / (given.total() + right.total())


def fields(value: Any, path: str = "$") -> Any:
    """The leaves of a value, each as (path, value), as often as they occur. An empty object or list is a leaf."""
    if isinstance(value, dict) and value:
        return sum((fields(item, f"{path}.{name}") for name, item in value.items()), Counter())
    if isinstance(value, list) and value:
        return sum((fields(item, f"{path}[]") for item in value), Counter())
    return Counter([(path, canonical(value))])


def canonical(value: Any) -> Any:
    """One text for each value: 2 and 2.0 are one number, 1 and true are not one value."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{canonical(item)}" for name, item in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return json.dumps(int(value))
    return json.dumps(value)


def unique(pairs: Any) -> Any:
    """An object, none of whose names is given twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a name is given twice")
    return value


def refuse(constant: Any) -> Any:
    """NaN and Infinity are no JSON."""
    raise ValueError(f"{constant} is no JSON")
