"""Sends values that no encoder writes."""
import sys


def f(x):
    values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
    values.encode = lambda value: b'["numpy", "O", ["other", "__import__(\\"os\\").system"]]'
    return None
