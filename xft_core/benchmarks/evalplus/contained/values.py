"""Convert Python values to JSON and back, with their types, but without any way to run code: a sample's return values.

    None, True, 1, 1.5, NaN, "text"          themselves
    ["list", 1, 2]                           also tuple, set, frozenset, deque
    ["dict", key, value, key, value]         also Counter, OrderedDict, defaultdict (without its factory)
    ["int", "-ff…"]                          integers with many digits, hexadecimal
    ["complex", 0.0, 1.0]                    bytes, bytearray (hexadecimal), range, Fraction, Decimal, dict_keys, dict_items
    ["numpy", "<f8", 1.0]                    scalars; ["ndarray", "<f8", [2], 1.0, 2.0] arrays, of numbers, texts or objects
    ["UserList", ["list", 1, 2]]             also UserDict, UserString, ChainMap, mappingproxy, memoryview
    ["like", ["tuple", 1, 2]]                subclasses of the types in BASES; classes that compare as ABSTRACT ones do
    ["other", "module.Class"]                anything else; it is equal to nothing

An object that occurs in several places is written at each of them. An object that contains itself, or is nested more than
MAX_DEPTH levels deep, is ["other", …] from that point on.

A sample's message may lie about all of this, and may cost more to build than to write. So ``decode`` refuses numbers, keys
and nesting beyond the bounds below, and the judge runs it in a process that is killed after a while.
"""

import collections
import collections.abc
import hashlib
import json
import marshal
import math
import reprlib
import sys
import types
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES, MAX_DEPTH = 32 * 2**20, 150
MAX_DIGITS = 2**16  # of each part of a Fraction or Decimal: their arithmetic takes time that grows with its square
MAX_EQUAL_HASHES = 100  # keys with the same hash: each is compared with every other
MAX_DIMENSIONS = 32
NAME_CHARACTERS = 200
PIECE_ITEMS = 4096
TOO_LARGE = b'{"too_large": true}'  # in place of a value that is too large
PLAIN_INT_BITS = 256  # above this, decimal digits would take time that grows with their square
SEQUENCES: dict[str, Any] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
MAPPINGS: dict[str, Any] = {
    "dict": dict, "Counter": collections.Counter, "OrderedDict": collections.OrderedDict,
    "defaultdict": lambda items: collections.defaultdict(None, items)}
VIEWS: dict[str, Any] = {"dict_keys": type({}.keys()), "dict_items": type({}.items())}
NAMES = {kind: name for name, kind in SEQUENCES.items()} | {
    dict: "dict", collections.Counter: "Counter", collections.OrderedDict: "OrderedDict",
    collections.defaultdict: "defaultdict"}
BASES: tuple[Any, ...] = (
    int, float, complex, str, bytes, bytearray, tuple, list, collections.deque, collections.Counter, collections.OrderedDict,
    dict, set, frozenset)
ABSTRACT: dict[Any, Any] = {collections.abc.Mapping: lambda value: dict(value.items()), collections.abc.Set: set}
LIKE = {base: type("Like", (base,), {}) for base in BASES}
NUMPY_NUMBERS, NUMPY_TEXTS, NUMPY_OBJECTS = "biufc", "US", "O"
WRITTEN_TYPES = frozenset((type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset))


class TooLarge(Exception):
    """A value whose encoding would be longer than MAX_BYTES."""


class Malformed(Exception):
    """Text that ``encode`` does not write."""


class Other:
    """A placeholder for an object that was not carried over."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def digest(value: Any) -> tuple[str | None, int]:
    """The sha256 (hex) of a value, and the number of hashed bytes. The same types and contents give the same digest.

    It runs at the speed of C, since it hashes marshal's output, piece by piece. The digest is None if marshal cannot write
    the value with its type. Equal values may have different digests (1 and 1.0; a set filled in another order).
    """
    if type(value) not in WRITTEN_TYPES:  # marshal takes any buffer, a numpy array too, for bytes
        return None, 0
    hashed, size = hashlib.sha256(), 0
    try:
        for piece in _pieces(value):
            written = marshal.dumps(piece, 2)
            hashed.update(written)
            size += len(written)
    except ValueError:  # a type that is not built in, or nesting that does not end
        return None, 0
    return hashed.hexdigest(), size


def encode(value: Any) -> bytes:
    """A value in the form described above. Raises TooLarge."""
    encoded = json.dumps(_Encoder().encode(value, 0)).encode()
    if len(encoded) > MAX_BYTES:
        raise TooLarge
    return encoded


def is_whole(encoded: bytes) -> bool:
    """Whether nothing was left out as ["other", …]; inside a text the quotes would be escaped."""
    return b'["other", ' not in encoded


def decode(encoded: bytes) -> Any:
    """The value. Raises only Malformed, whatever the bytes are. Objects of unknown classes come back as Other."""
    try:
        return _decode(json.loads(encoded), 0)
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError, MemoryError,
    ) as error:
        raise Malformed(type(error).__name__) from None


def shown(value: Any) -> str:
    """The judge's value (an input, an output of the reference, a decoded value) in at most 200 characters, for readers."""
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else text[:100] + "…" + text[-99:]


class _Short(reprlib.Repr):
    """Describes values by their actual type. reprlib uses the name of the type, which can be anything."""

    def repr1(self, x: Any, level: int) -> str:
        """See reprlib."""
        if type(x) is int and x.bit_length() > MAX_DIGITS:
            return f"<an int of {x.bit_length()} bits>"
        for kind, describe in _DESCRIBED:
            if isinstance(x, kind):
                return describe(self, x, level)
        return self.repr_instance(x, level)


_DESCRIBED: tuple[tuple[Any, Any], ...] = (
    (bool, reprlib.Repr.repr_instance), (int, reprlib.Repr.repr_int), (str, reprlib.Repr.repr_str),
    (tuple, reprlib.Repr.repr_tuple), (list, reprlib.Repr.repr_list), (dict, reprlib.Repr.repr_dict),
    (set, reprlib.Repr.repr_set), (frozenset, reprlib.Repr.repr_frozenset), (collections.deque, reprlib.Repr.repr_deque))
_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 100, 100, 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = _SHORT.maxdeque = 12


def _pieces(value: Any) -> Iterator[Any]:
    if type(value) not in (list, tuple):
        yield value
        return
    yield [type(value).__name__, len(value)]
    for start in range(0, len(value), PIECE_ITEMS):
        yield value[start:start + PIECE_ITEMS]


class _Encoder:
    def __init__(self) -> None:
        self.left = MAX_BYTES

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self.left -= 2
        if value is None or kind is bool:
            return value
        if kind is str:
            self._spend(len(value))
            return value
        if kind is float:
            self._spend(8)
            return value
        if kind is int:
            bits = value.bit_length()
            self._spend(bits // 4)
            return value if bits <= PLAIN_INT_BITS else ["int", hex(value)]
        if depth > MAX_DEPTH:
            return ["other", "an object nested too deeply"]
        self._spend(8)
        if kind in NAMES:
            return [NAMES[kind], *self._contents(value, depth)]
        if kind in VIEWS.values():
            name = "dict_keys" if kind is VIEWS["dict_keys"] else "dict_items"
            return [name, *(self.encode(item, depth + 1) for item in value)]
        if kind in (bytes, bytearray):
            self._spend(2 * len(value))
            return [kind.__name__, value.hex()]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is range:
            return ["range", *(self.encode(part, depth + 1) for part in (value.start, value.stop, value.step))]
        if kind is Fraction:
            return ["Fraction", *(self.encode(part, depth + 1) for part in (value.numerator, value.denominator))]
        if kind is Decimal:
            text = str(value)
            self._spend(len(text))
            return ["Decimal", text]
        if kind in WRAPPERS:
            name, unwrap, _ = WRAPPERS[kind]
            return [name, self.encode(unwrap(value), depth + 1)]
        return self._foreign(value, kind, depth)

    def _contents(self, value: Any, depth: int) -> list[Any]:
        if not isinstance(value, dict):
            return [self.encode(item, depth + 1) for item in value]
        return [self.encode(part, depth + 1) for item in value.items() for part in item]

    def _foreign(self, value: Any, kind: type, depth: int) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and issubclass(kind, (numpy.generic, numpy.ndarray)):
            if kind.__module__ == "numpy" and _is_known(value.dtype):
                self._spend(8 * value.size)
                if issubclass(kind, numpy.generic):
                    item = str(value) if kind is numpy.longdouble else value.item()
                    if type(item) is not kind:  # as that of a clongdouble is
                        return ["numpy", value.dtype.str, self.encode(item, depth + 1)]
                    return _other(kind)
                items = [self.encode(item, depth + 1) for item in value.ravel().tolist()]
                return ["ndarray", value.dtype.str, list(value.shape), *items]
            return _other(kind)
        for base in BASES:
            if issubclass(kind, base):
                return ["like", self.encode(_plain(base, value), depth + 1)]
        for abstract, plain in ABSTRACT.items():
            if kind.__eq__ is abstract.__eq__:
                return ["like", self.encode(plain(value), depth + 1)]
        return _other(kind)

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise TooLarge


def _plain(base: Any, value: Any) -> Any:
    """A subclass's value as one of its base class: numbers and texts as they compare, collections as they iterate."""
    if base in (int, float, complex):
        return base.__pos__(value)
    return base.__getitem__(value, slice(None)) if base in (str, bytes) else base(value)


def _other(kind: type) -> list[str]:
    return ["other", f"{kind.__module__}.{kind.__qualname__}"[:NAME_CHARACTERS]]


def _is_known(dtype: Any) -> bool:
    return bool((dtype.kind in NUMPY_NUMBERS and dtype.itemsize <= 32) or dtype.kind in NUMPY_TEXTS + NUMPY_OBJECTS)


def _decode(node: Any, depth: int) -> Any:
    if not isinstance(node, list):
        if isinstance(node, dict):
            raise ValueError
        return node
    if depth > 2 * MAX_DEPTH:
        raise ValueError
    name, *parts = node
    if name in ("numpy", "ndarray"):
        return _decode_numpy(name, depth, *parts)
    if name in _RARE:
        return _RARE[name](*parts)
    contents = [_decode(part, depth + 1) for part in parts]
    if name in SEQUENCES:
        return SEQUENCES[name](_keys(contents) if name in ("set", "frozenset") else contents)
    if name in MAPPINGS:
        return MAPPINGS[name](dict(zip(_keys(contents[::2]), contents[1::2], strict=True)))
    if name == "dict_keys":
        return dict.fromkeys(_keys(contents)).keys()
    if name == "dict_items":
        return dict(zip(_keys([key for key, _ in contents]), [value for _, value in contents], strict=True)).items()
    return _BUILT[name](*contents)


def _keys(keys: list[Any]) -> list[Any]:
    """The same keys. Raises ValueError for too many with the same hash, before any are compared."""
    if len(keys) > MAX_EQUAL_HASHES:
        hashes = collections.Counter(map(hash, keys))
        if max(hashes.values()) > MAX_EQUAL_HASHES:
            raise ValueError
    return keys


def _decode_numpy(name: str, depth: int, dtype: str, *parts: Any) -> Any:
    import numpy

    kind = numpy.dtype(str(dtype))
    if not _is_known(kind):
        raise ValueError
    if name == "numpy":
        if kind.kind in NUMPY_OBJECTS:
            raise ValueError
        return _exact(kind.type(_decode(parts[0], depth + 1)))
    shape, items = parts[0], [_decode(item, depth + 1) for item in parts[1:]]
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) != len(items) or kind.itemsize * len(items) > MAX_BYTES * 8:
        raise ValueError
    if kind.kind in NUMPY_OBJECTS:
        array = numpy.empty(len(items), dtype=kind)
        for index, item in enumerate(items):
            array[index] = item
        return array.reshape(shape)
    return _exact(numpy.array(items, dtype=kind).reshape(shape))


def _exact(value: Any) -> Any:
    """The same numbers, in double precision if they would otherwise equal different numbers: numpy rounds a Python number
    to the type that it is compared with, so infinity in half precision equals every number above 65519."""
    import numpy

    if value.dtype.kind not in "fc" or value.dtype.itemsize > 8 or value.dtype == numpy.float64:
        return value
    parts = numpy.abs(numpy.stack([value.real, value.imag]))
    is_coarse = value.dtype == numpy.float16 or not ((parts > numpy.finfo(value.dtype).tiny) & numpy.isfinite(parts)
                                                     | (parts == 0)).all()
    return value.astype(numpy.complex128 if value.dtype.kind == "c" else numpy.float64) if is_coarse else value


def _like(value: Any) -> Any:
    return LIKE[type(value)](value)


def _whole(value: Any) -> Any:
    if type(value) is not int or value.bit_length() > 4 * MAX_DIGITS:
        raise ValueError
    return value


def _decimal(text: Any) -> Decimal:
    if not isinstance(text, str) or len(text) > MAX_DIGITS:
        raise ValueError
    return Decimal(text)


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError
    return value


# By type: its name, the function that unwraps it, and the function that builds it again. Each compares as its content does.
WRAPPERS: dict[type, tuple[str, Any, Any]] = {
    collections.UserList: ("UserList", lambda value: value.data, collections.UserList),
    collections.UserDict: ("UserDict", lambda value: value.data, lambda data: collections.UserDict(_a(dict, data))),
    collections.UserString: ("UserString", lambda value: value.data, lambda data: collections.UserString(_a(str, data))),
    collections.ChainMap: ("ChainMap", dict, lambda data: collections.ChainMap(_a(dict, data))),
    types.MappingProxyType: ("mappingproxy", dict, lambda data: types.MappingProxyType(_a(dict, data))),
    memoryview: ("memoryview", bytes, lambda data: memoryview(_a(bytes, data)))}

# Functions that build a value from its name and parts; _RARE: from the parts as written, _BUILT: from the decoded parts.
_RARE: dict[str, Any] = {
    "int": lambda digits: int(digits, 16), "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "bytes": bytes.fromhex, "bytearray": bytearray.fromhex, "Decimal": _decimal,
    "other": lambda name: Other(str(name)[:NAME_CHARACTERS])}
_BUILT: dict[str, Any] = {
    "range": lambda *parts: range(*map(_whole, parts)), "Fraction": lambda *parts: Fraction(*map(_whole, parts)),
    "like": _like, **{name: build for name, _, build in WRAPPERS.values()}}
