"""Sends JSON nested a million levels deep as a value."""
import sys


def f(x):
    values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
    values.encode = lambda value: b"[" * 10 ** 6
    return None
