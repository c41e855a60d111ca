import collections
import enum
import json
import math
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xft_core.benchmarks.evalplus.contained import values
from xft_core.benchmarks.evalplus.contained.values import (
    Malformed,
    Other,
    TooLarge,
    decode,
    digest,
    encode,
    is_whole,
    shown,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.complex_numbers(
    allow_nan=False)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=8)
VALUES = st.recursive(
    HASHABLE, lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.sets(HASHABLE, max_size=5)
    | st.dictionaries(HASHABLE, inner, max_size=5), max_leaves=20)


def same(left: Any, right: Any) -> bool:
    """Return whether the values are equal, with equal types throughout."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


@given(VALUES)
def test_built_in_values_come_back_with_their_types(value: Any) -> None:
    encoded = encode(value)
    assert is_whole(encoded)
    assert same(decode(encoded), value)


@given(VALUES, VALUES)
def test_equal_digests_mean_equal_values(left: Any, right: Any) -> None:
    assert digest(left)[0] is not None
    if digest(left) == digest(right):
        assert same(left, right)
    if isinstance(left, list):
        assert digest(left) != digest(tuple(left))
        assert digest(left) == digest(list(left))


def test_digests_tell_apart_what_evalplus_tells_apart() -> None:
    groups: list[list[Any]] = [[1, 1.0, True], [[1], (1,)], [[[1, 2]], [[1], [2]]], ["1", b"1"], [[], ()], [0.0, -0.0]]
    for group in groups:
        assert len({digest(value)[0] for value in group}) == len(group), group
    long = list(range(10_000))
    assert digest(long) != digest(long[:-1]) and digest(long) != digest([*long[:-1], -1])
    assert digest(object())[0] is None and digest(numpy.array([1]))[0] is None


class Own(list[int]):
    pass


class Equal(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize("value", [
    10**500, -(10**500), math.inf, -math.inf, range(1, 9, 2), Fraction(1, 3), Decimal("1.50"), bytearray(b"ab"),
    collections.deque([1, 2]), collections.OrderedDict(a=1), numpy.float64(0.1), numpy.int32(-3), numpy.bool_(True),
    numpy.complex128(1j), {"a": {1, 2}}.keys(), {"a": 1}.items()])
def test_other_types_that_compare_come_back(value: Any) -> None:
    assert type(decode(encode(value))) is type(value) and decode(encode(value)) == value


def test_what_compares_as_a_built_in_type_does_still_does() -> None:
    point = collections.namedtuple("point", "x y")(1, 2)  # type: ignore[call-arg, arg-type]
    for value, plain in [
            (collections.Counter("aab"), {"a": 2, "b": 1}), (collections.defaultdict(list, a=[1]), {"a": [1]}),
            (point, (1, 2)), (Own([1, 2]), [1, 2]), (Colour.RED, 1)]:
        back = decode(encode(value))
        assert back == plain and type(back) is not type(plain)
    array = decode(encode(numpy.array([[1.5, 2], [3, 4]], dtype="f4")))
    assert array.dtype == numpy.float32 and array.tolist() == [[1.5, 2], [3, 4]]
    assert math.isnan(decode(encode(math.nan)))


def test_a_number_of_few_bits_equals_no_number_far_from_it() -> None:
    """numpy rounds the other number to its own few bits before it compares."""
    assert numpy.float16(math.inf) == 1e9 and [numpy.float32(math.inf)] == [1e300]  # numpy's own behavior
    assert numpy.float16(3.14) == 3.1405 and numpy.float32(1e-46) == 1e-47
    for output, expected in [
            (numpy.float16(math.inf), 1e9), (numpy.float16(-math.inf), -65520.0), (numpy.float32(math.inf), 1e300),
            ([numpy.float16(math.inf)], [1e6]), ({"a": (numpy.float32(math.inf),)}, {"a": (1e40,)}),
            (numpy.array([math.inf], dtype="f2"), 1e9), (numpy.array([[math.inf]], dtype="f4"), [[1e300]]),
            (numpy.array(math.inf, dtype="f2"), 70000), (numpy.complex64(math.inf), 1e300),
            (numpy.float16(3.14), 3.1405), (numpy.float16(6e-8), 5e-8), (numpy.float32(1e-44), 1.1e-44)]:
        assert not decode(encode(output)) == expected, (output, expected)
    for number in (0.1, 1.0, -2.5e30, 0.0, 7):  # as in evalplus
        assert decode(encode(numpy.float32(number))) == number
    for value in (numpy.float16(0.5), numpy.float16(math.inf), numpy.float32(math.inf), numpy.complex64(1 + 2j)):
        assert decode(encode(value)) == value == value.item()


def test_what_is_not_carried_over_is_equal_to_nothing() -> None:
    for value in (object(), (item for item in [1]), print, numpy.datetime64("2020-01-01"), len):
        encoded = encode(value)
        assert not is_whole(encoded)
        back = decode(encoded)
        assert isinstance(back, Other)
        assert back != decode(encoded)
    assert is_whole(encode('["other", "x"]'))
    assert decode(encode(Equal(1))) == 1 != 2 and decode(encode(Equal(1))) != 2


def test_what_has_no_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_BYTES", 10**5)
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    for value in (endless, deep):
        assert digest(value)[0] is None and not is_whole(encode(value))
        assert len(shown(decode(encode(value)))) < 300
    doubling: list[Any] = [0]
    for _ in range(40):
        doubling = [doubling, doubling]
    too_large: list[Any] = [doubling, "x" * 10**5, 1 << 10**6]
    for value in too_large:
        with pytest.raises(TooLarge):
            encode(value)


@pytest.mark.parametrize("text", [
    "", "{", "{}", "[]", "[1]", '["eval", "1"]', '["int", 5]', '["int", "zz"]', '["dict", 1]', '["dict", ["list"], 1]',
    '["set", ["list"]]', '["numpy", "O", 1]', '["ndarray", "<f8", [3], 1.0]', '["ndarray", "<f8", [-1, 0]]',
    '["like", 1, 2]', '["like", true]', '["like", ["other", "x"]]', '["complex", "a", 1]', '["bytes", "0"]',
    '["range", 1, 2, 0]', '["Fraction", 1, 0]', '["Decimal", "x"]', "[" * 10**6, "9" * 10**5,
    '["range", 1.5]', '["dict_keys", ["list"]]', '["list", {"a": 1}]', '["numpy"]', '["numpy", 7, 1]'])
def test_bytes_that_no_encoder_writes(text: str) -> None:
    with pytest.raises(Malformed):
        decode(text.encode())


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(
        ["list", "tuple", "set", "dict", "int", "numpy", "ndarray", "<f8", "like", "other", "range", "bytes", "Decimal"]),
    lambda inner: st.lists(inner, max_size=5), max_leaves=20))
def test_decoding_never_fails_in_another_way(node: Any) -> None:
    try:
        shown(decode(json.dumps(node).encode()))
    except Malformed:
        pass


SAME_HASH = [f", {n * (2**61 - 1)}" for n in range(50_000)]


@pytest.mark.parametrize("text", [
    f'["Fraction", ["int", "{"f" * 10**6}"], 3]', f'["range", 0, ["int", "{"f" * 10**6}"], 1]', f'["Decimal", "{"9" * 10**6}"]',
    f'["set"{"".join(SAME_HASH)}]', f'["like", ["frozenset"{"".join(SAME_HASH)}]]', f'["dict_keys"{"".join(SAME_HASH)}]',
    f'["dict"{"".join(f"{key}, 1" for key in SAME_HASH)}]',
    f'["dict_items"{"".join(f", [{chr(34)}tuple{chr(34)}{key}, 1]" for key in SAME_HASH)}]',
    '["list", ' * 400 + "1" + "]" * 400, '["ndarray", "<f8", [0, 4611686018427387904], 1]',
    '["ndarray", "<U99999999", [2], "", ""]', f'["ndarray", "<f8", {[1] * 33}, 1.0]', '["numpy", "|O", 1]',
    '["UserDict", ["list"]]', '["memoryview", 5]'])
def test_what_costs_more_to_build_than_to_write_is_not_built(text: str) -> None:
    started = time.process_time()
    with pytest.raises(Malformed):
        decode(text.encode())
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["array", "dict", "list", "set", "deque", "int", "str", "tuple", "instance", "Own"])
def test_values_are_shown_by_what_they_are_and_not_by_the_name_of_their_type(name: str) -> None:
    for base, shown_as in ((list, "[]"), (dict, "{}"), (tuple, "()"), (str, "''"), (int, "0"), (set, "set()")):
        value = type(name, (base,), {})()
        assert shown(value) == shown_as == shown(decode(encode(value)))


def test_values_are_shown_short() -> None:
    lists, texts = [["z" * 90] * 9] * 9, {index: "y" * 500 for index in range(100)}
    for value in ("x" * 10**6, list(range(10**5)), 10**10_000, texts, lists):
        assert 0 < len(shown(value)) <= 200
    assert shown([1, "a", None]) == "[1, 'a', None]"
