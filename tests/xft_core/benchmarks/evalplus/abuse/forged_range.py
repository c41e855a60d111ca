"""Sends, instead of its answer, deeply nested ranges whose bounds take megabytes."""
import sys

values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
values.encode = lambda value: b'["list", ' * 5000 + b'["range", 0, ["int", "' + b"f" * 10_000_000 + b'"], 1]' + b"]" * 5000

def f(x):
    return [x]
