"""Sends, in place of its answer, keys of one hash that no honest program would."""
import sys

values = sys.modules["xft_core.benchmarks.evalplus.contained.values"]
values.encode = lambda value: ("[\"dict\"" + "".join(f", {index * (2**61 - 1)}, 1" for index in range(300_000)) + "]").encode()

def f(x):
    return [x]
