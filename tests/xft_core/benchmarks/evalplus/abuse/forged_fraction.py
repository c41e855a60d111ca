"""Sends, instead of its answer, a fraction of fifteen million digits."""
import sys

values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
values.encode = lambda value: b'["Fraction", ["int", "' + b"f" * 15_000_000 + b'"], ["int", "' + b"e" * 15_000_000 + b'"]]'

def f(x):
    return [x]
