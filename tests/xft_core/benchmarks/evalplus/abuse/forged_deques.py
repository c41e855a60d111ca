"""Sends, instead of its answer, values that take eleven characters each, but hundreds of bytes when rebuilt."""
import sys

values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
values.encode = lambda value: b'["list"' + b', ["deque"]' * 3_000_000 + b"]"

def f(x):
    return [x]
