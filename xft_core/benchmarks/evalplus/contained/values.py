"""Python values as JSON and back, with their types, and never a way to run code: what a sample returned.

    None, True, 1, 1.5, NaN, "text"          themselves
    ["list", 1, 2]                           and so tuple, set, frozenset, deque
    ["dict", key, value, key, value]         and so Counter, OrderedDict, defaultdict (without its factory)
    ["int", "-ff…"]                          integers of many digits, hexadecimal
    ["complex", 0.0, 1.0]                    bytes, bytearray (hexadecimal), range, Fraction, Decimal, dict_keys, dict_items
    ["numpy", "<f8", 1.0]                    scalars; ["ndarray", "<f8", [2], 1.0, 2.0] arrays
    ["like", "Point", ["tuple", 1, 2]]       subclasses of int, float, str, tuple, list, dict, set that compare as these do
    ["other", "module.Class"]                anything else; it is equal to nothing

An object that is in several places is written at each of them. One that contains itself, or is nested more than
MAX_DEPTH levels deep, is ["other", …] from there on.
"""

import collections
import hashlib
import json
import marshal
import reprlib
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES, MAX_DEPTH = 32 * 2**20, 150
PIECE_ITEMS = 4096
PLAIN_INT_BITS = 256  # above, decimal digits would cost time that grows with their square
SEQUENCES: dict[str, Any] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
MAPPINGS: dict[str, Any] = {
    "dict": dict, "Counter": collections.Counter, "OrderedDict": collections.OrderedDict,
    "defaultdict": lambda items: collections.defaultdict(None, items)}
VIEWS: dict[str, Any] = {"dict_keys": type({}.keys()), "dict_items": type({}.items())}
NAMES = {kind: name for name, kind in SEQUENCES.items()} | {
    dict: "dict", collections.Counter: "Counter", collections.OrderedDict: "OrderedDict",
    collections.defaultdict: "defaultdict"}
BASES = (int, float, str, tuple, list, collections.OrderedDict, dict, set, frozenset)
NUMPY_KINDS = "biufc"
WRITTEN_TYPES = frozenset((type(None), bool, int, float, complex, str, bytes, tuple, list, dict, set, frozenset))


class TooLarge(Exception):
    """A value whose encoding would be longer than MAX_BYTES."""


class Malformed(Exception):
    """Text that ``encode`` does not write."""


class Other:
    """In the place of an object that was not carried over."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def digest(value: Any) -> tuple[str | None, int]:
    """sha256 (hex) of a value, the same for the same types and contents throughout, and how many bytes it is of.

    At the speed of C: it is that of what marshal writes, piece by piece. None where that cannot be. Equal values may
    have different digests (1 and 1.0; a set filled in another order).
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
    """A value in the form above. Raises TooLarge."""
    encoded = json.dumps(_Encoder().encode(value, 0)).encode()
    if len(encoded) > MAX_BYTES:
        raise TooLarge
    return encoded


def is_whole(encoded: bytes) -> bool:
    """Whether nothing was left out as ["other", …]; in a text the quotes would be escaped."""
    return b'["other", ' not in encoded


def decode(encoded: bytes) -> Any:
    """The value; raises Malformed, whatever the bytes are. What is not built in comes back as Other."""
    try:
        return _decode(json.loads(encoded))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Malformed(type(error).__name__) from None


def shown(value: Any) -> str:
    """A value in at most about 200 characters, for people."""
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else text[:100] + "…" + text[-99:]


_SHORT = reprlib.Repr()
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
            return ["Decimal", str(value)]
        return self._foreign(value, kind, depth)

    def _contents(self, value: Any, depth: int) -> list[Any]:
        if not isinstance(value, dict):
            return [self.encode(item, depth + 1) for item in value]
        return [self.encode(part, depth + 1) for item in value.items() for part in item]

    def _foreign(self, value: Any, kind: type, depth: int) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
            if type(value).__module__ == "numpy" and value.dtype.kind in NUMPY_KINDS and value.dtype.itemsize <= 16:
                self._spend(8 * value.size)
                if isinstance(value, numpy.generic):
                    return ["numpy", value.dtype.str, self.encode(value.item(), depth + 1)]
                items = [self.encode(item, depth + 1) for item in value.ravel().tolist()]
                return ["ndarray", value.dtype.str, list(value.shape), *items]
        else:
            for base in BASES:
                if issubclass(kind, base) and kind.__eq__ is base.__eq__:
                    return ["like", kind.__name__, self.encode(base(value), depth + 1)]
        return ["other", f"{kind.__module__}.{kind.__qualname__}"]

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise TooLarge


def _decode(node: Any) -> Any:
    if not isinstance(node, list):
        if isinstance(node, dict):
            raise ValueError
        return node
    name, *parts = node
    if name in SEQUENCES:
        return SEQUENCES[name](map(_decode, parts))
    if name in MAPPINGS:
        items = list(map(_decode, parts))
        return MAPPINGS[name](dict(zip(items[::2], items[1::2], strict=True)))
    if name in ("numpy", "ndarray"):
        return _decode_numpy(name, *parts)
    return _RARE[name](*parts)


def _decode_numpy(name: str, dtype: str, *parts: Any) -> Any:
    import numpy

    kind = numpy.dtype(dtype)
    if kind.kind not in NUMPY_KINDS:
        raise ValueError
    if name == "numpy":
        return kind.type(_decode(parts[0]))
    return numpy.array(list(map(_decode, parts[1:])), dtype=kind).reshape(parts[0])


def _like(name: str, node: Any) -> Any:
    value = _decode(node)
    if type(value) not in BASES:
        raise ValueError
    return type(str(name), (type(value),), {})(value)


_RARE: dict[str, Any] = {
    "int": lambda digits: int(digits, 16), "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "bytes": bytes.fromhex, "bytearray": bytearray.fromhex,
    "range": lambda *parts: range(*map(_decode, parts)), "Fraction": lambda *parts: Fraction(*map(_decode, parts)),
    "Decimal": lambda text: Decimal(str(text)),
    "dict_keys": lambda *parts: dict.fromkeys(map(_decode, parts)).keys(),
    "dict_items": lambda *parts: dict(map(_decode, parts)).items(),
    "like": _like, "other": lambda name: Other(str(name)),
}
