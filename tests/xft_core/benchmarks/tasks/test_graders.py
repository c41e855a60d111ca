"""The graders that ship, as functions: right values pass, and similar wrong ones do not, whatever the values are."""

import json
import runpy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xft_core.benchmarks.tasks.folder import GRADERS

SQL, EXTRACTION, QUANTITY, EXACT = (
    runpy.run_path(str(GRADERS / f"{name}.py")) for name in ("sql", "extraction", "quantity", "exact"))
same_rows: Callable[..., bool] = SQL["same_rows"]
field_f1: Callable[[Any, Any], float] = EXTRACTION["field_f1"]

VALUES = st.none() | st.integers(-5, 5) | st.sampled_from([0.1, 0.25, 1e9, -2.5]) | st.sampled_from(["", "a", "1", "NULL"])
ROWS = st.lists(st.lists(VALUES, min_size=2, max_size=2), max_size=6)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_a_bag_of_rows_has_no_order(rows: list[list[Any]], rng: Any) -> None:
    shuffled = rng.sample(rows, len(rows))
    assert same_rows(shuffled, rows, False)
    assert same_rows(shuffled, rows, True) == all(map(SQL["same_row"], shuffled, rows))


@settings(max_examples=60, deadline=None)
@given(ROWS.filter(bool), st.data())
def test_rows_count_as_often_as_they_occur(rows: list[list[Any]], data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(rows))
    assert not same_rows([*rows, row], rows, False) and not same_rows(rows, [*rows, row], False)


@settings(max_examples=60, deadline=None)
@given(ROWS.filter(bool), st.data())
def test_one_other_value_is_another_result(rows: list[list[Any]], data: st.DataObject) -> None:
    place, value = data.draw(st.integers(0, len(rows) - 1)), rows[0][0]
    other = data.draw(VALUES.filter(lambda drawn: not SQL["same_value"](drawn, rows[place][0])))
    changed = [list(row) for row in rows]
    changed[place][0] = other
    assert not same_rows(changed, rows, False) and not same_rows(changed, rows, True), value


@given(st.floats(-1e12, 1e12), st.sampled_from([1 + 1e-12, 1 - 1e-12]))
def test_rounding_is_no_other_number(number: float, factor: float) -> None:
    assert same_rows([[number * factor], [1]], [[1.0], [number]], False)


@pytest.mark.parametrize("found, expected", [
    ([[None]], [[0]]), ([[None]], [[""]]), ([["1"]], [[1]]), ([[1.001]], [[1.0]]), ([[2**40]], [[2**40 + 1]])])
def test_null_text_and_numbers_are_different(found: list[Any], expected: list[Any]) -> None:
    assert not same_rows(found, expected, False)


@pytest.mark.parametrize("answer", [
    "SELECT COUNT(*) FROM t; DROP TABLE t", "DELETE FROM t", "ATTACH 'x' AS y", "PRAGMA user_version", "", "SELECT",
    "SELECT load_extension('x')", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"])
def test_an_answer_that_is_no_one_query_fails(answer: str) -> None:
    with pytest.raises(Exception, match=r"."):
        SQL["execute"]({"schema": "CREATE TABLE t (a);"}, answer)


LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2)
RECORDS = st.recursive(
    st.dictionaries(st.sampled_from("pqr"), LEAVES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from("pqr"), LEAVES | inner | st.lists(LEAVES | inner, max_size=3), min_size=1, max_size=3),
    max_leaves=6)


@settings(max_examples=100, deadline=None)
@given(RECORDS, RECORDS)
def test_f1_is_symmetric_between_0_and_1_and_1_for_itself(one: Any, other: Any) -> None:
    assert field_f1(one, one) == 1
    assert field_f1(one, other) == field_f1(other, one) and 0 <= field_f1(one, other) <= 1


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_one_more_field_lowers_precision_alone(record: Any) -> None:
    fields = EXTRACTION["fields"](record).total()
    assert field_f1({**record, "new": 7}, record) == pytest.approx(2 * fields / (2 * fields + 1))


@settings(max_examples=100, deadline=None)
@given(RECORDS, RECORDS)
def test_only_the_record_itself_is_right(record: Any, other: Any) -> None:
    problem = {"schema": {"type": "object"}, "record": record}
    assert EXTRACTION["judge"](problem, json.dumps(record))["plus"]
    found = EXTRACTION["judge"](problem, json.dumps(other))
    assert found["base"] and found["plus"] == (EXTRACTION["canonical"](record) == EXTRACTION["canonical"](other))


@pytest.mark.parametrize("answer", ["", "{", "[1]", '{"a": "2"}', '{"a": 2, "a": 2}', '{"a": NaN}', "[" * 100_000, '{"b": 2}'])
def test_what_the_schema_refuses_fails(answer: str) -> None:
    problem = {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}, "record": {"a": 2}}
    found = EXTRACTION["judge"](problem, answer)
    assert not found["base"] and found["detail"] and found["score"] < 1


def test_numbers_are_equal_by_value_and_truth_values_are_no_numbers() -> None:
    assert field_f1({"a": 2.0}, {"a": 2}) == 1 and field_f1({"a": True}, {"a": 1}) == 0 and field_f1({}, {}) == 1


@pytest.mark.parametrize("answer, right", [
    ("It rides 2,500 m/h.", True), ("first 7 km, so 0.6944 m / s", True), ("2.5", False), ("2.5 kg", False), ("3 km/h", False),
    ("-2.5 km/h", False), ("", False), ("2.5 km/h or 9 km/h", False), ("1e99 km/h", False)])
def test_quantities_are_compared_by_dimension_and_size(answer: str, right: bool) -> None:
    assert QUANTITY["judge"]({"quantity": "2.5 km/h"}, answer)["base"] == right


@pytest.mark.parametrize("quantity, answer", [
    ("6 m**2", "6 m^2"), ("6 m**2", "6 m²"), ("6 m**2", "600 dm²"), ("20 degC", "68 °F"), ("30 %", "0.3")])
def test_one_unit_in_other_spellings(quantity: str, answer: str) -> None:
    assert QUANTITY["judge"]({"quantity": quantity}, answer)["base"]


CRUX = {"code": "def f(x, y=1):\n    return [x] * y", "input": "'a', 2", "output": "['a', 'a']"}


@pytest.mark.parametrize("answer, right", [
    ("['a', 'a']", True), ('[ANSWER]["a", "a"][/ANSWER]', True), ("assert f('a', 2) == ['a', 'a']", True), ("['a']", False),
    ("", False), ("f('a', 2)", False), ("['a'] * 2", False), ("__import__('os')", False)])
def test_outputs_of_cruxeval(answer: str, right: bool) -> None:
    assert runpy.run_path(str(GRADERS / "cruxeval_output.py"))["judge"](CRUX, answer)["base"] == right


@pytest.mark.parametrize("answer, right", [
    ("'a', 2", True), ("f('a', y=2)", True), ("[ANSWER]'a', 2[/ANSWER]", True), ("assert f('a', 2) == ['a', 'a']", True),
    ("'a', 3", False), ("'b', 2", False), ("", False), ("2", False), ("'a', 'b', 'c'", False), ("**{'x': 'a'}", False),
    ("type('E', (), {'__eq__': lambda *_: True})(), 1", False), ("print('a'), 2", False)])
def test_inputs_of_cruxeval(answer: str, right: bool) -> None:
    assert runpy.run_path(str(GRADERS / "cruxeval_input.py"))["judge"](CRUX, answer)["base"] == right


def test_short_answers_are_compared_without_case_and_space() -> None:
    assert EXACT["judge"]({"answer": ["New York", "NYC"]}, " new  york\n")["base"]
    assert not EXACT["judge"]({"answer": "New York"}, "New York City")["base"]
