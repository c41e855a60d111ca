"""Sends, instead of its answer, keys that share one hash, which no honest program would send."""
import sys

values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
values.encode = lambda value: ("[\"dict\"" + "".join(f", {index * (2**61 - 1)}, 1" for index in range(300_000)) + "]").encode()

def f(x):
    return [x]
