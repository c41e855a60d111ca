"""Damage found in files from outside: spoiled bytes, values of other kinds, names that lead elsewhere."""

import json
import random
from typing import Any

NAMES = [
    "", ".", "..", "../secret", "../../etc/passwd", "/etc/passwd", "a/../../b", "a\0b", "a" * 4000, "/" + "b/" * 2000, 
    "~nobody/x", "C:\\x", "a\\..\\b", "\ud800", "\u202e", "con\n", "demo:../x", "demo:/etc/passwd", "demo:", "s3://", "s3://b/../c",
    "owner/x@",
    "model.safetensors", "%00", "$(id)", "-rf", "é" * 500]
NUMBERS = [
    0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**400, 0.0, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    float("-inf")]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], {"": None}, [None] * 50, {"a": {"b": {"c": []}}}]
YAML = [
    "a: &a [1]\nb: *a\n", "[" * 5000, "{a: " * 500, "a: 1\na: 2\n", "<<: {seed: 1}\n", "? [a]\n: b\n",
    "!!python/object:os.system x",
    "!!binary x", "!!timestamp 2001-99-99", "2001-99-99", "a: 2001-13-40", "1" * 6000, "1" + ":1" * 3000, "0x", "0b2",
    "!!int x", "!!float x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a]", "%YAML 9.9\n---\n", "---\n---\n", "\t", "a:\tb",
    "'",
    '"\\ud800"', "&a",
    "*a", "!", "|\n  x", ">", "- - - -", ".nan", ".inf", "1e999", "null", "~", "=", "!!null x", "!!bool x", "!!str\n",
    "!!map []", "!!seq {}",
    "a: !!map x", "&a [*a]", "- &x {<<: *x}", "\ufeffa: 1", "a: \x07"]
JSON = [
    "[" * 100_000, '{"a":' * 50_000, "9" * 5000, "1e99999", "NaN", "-Infinity", '"\\ud800"', '{"a": 1, "a": 2}', "", " ",
    "null", "[]", "{}", "0", '""', "[null]", "\ufeff{}", "{", "}", '"', "tru", '{"\\u0000": "\\u0000"}']


def value(rng: random.Random, depth: int = 3) -> Any:
    """Return some value that JSON can hold (and a few that it cannot)."""
    kind = rng.randrange(6 if depth else 3)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(NAMES)
    if kind == 2:
        return rng.choice(OTHERS)
    if kind == 3:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return {rng.choice(NAMES)[:50]: value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x2000), 0xFFFD])) for _ in range(rng.randrange(30)))


def changed(rng: random.Random, content: Any) -> Any:
    """Return ``content`` with one value somewhere in it replaced, removed, or renamed."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        action = rng.randrange(8)
        if action == 0:
            return {name: item for name, item in content.items() if name != key}
        if action == 1:
            return {rng.choice(NAMES)[:60] if name == key else name: item for name, item in content.items()}
        return {name: changed(rng, item) if name == key else item for name, item in content.items()}
    if isinstance(content, list) and content and rng.random() < 0.9:
        place = rng.randrange(len(content))
        if rng.randrange(5) == 0:
            return [*content[:place], *content[place + 1:]]
        return [changed(rng, item) if index == place else item for index, item in enumerate(content)]
    return value(rng)


def spoiled(rng: random.Random, content: bytes) -> bytes:
    """Return ``content`` with some bits flipped, cut, doubled, overwritten or removed."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(damaged) + 1)
        match rng.randrange(6):
            case 0 if place < len(damaged):
                damaged[place] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[place:]
            case 2:
                del damaged[place:place + rng.randrange(64)]
            case 3:
                damaged[place:place] = damaged[:rng.randrange(64)]
            case 4:
                damaged[place:place + 8] = rng.choice([b"\xff" * 8, bytes(8), bytes(7) + b"\x80", rng.randbytes(8)])
            case _:
                damaged[place:place] = rng.choice([b"\0", b"\xff", b"{", b"[", b'"', b"\n", b"\\ud800", b"/../"])
    return bytes(damaged)


def json_text(rng: random.Random, content: Any) -> bytes:
    """Return a JSON file's content with changed values, damaged bytes, or something else altogether."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(JSON).encode("utf-8", "surrogatepass")
    text = json.dumps(changed(rng, content) if kind < 7 else content, ensure_ascii=rng.random() < 0.8)
    encoded = text.encode("utf-8", "surrogatepass")
    return spoiled(rng, encoded) if kind > 5 else encoded
