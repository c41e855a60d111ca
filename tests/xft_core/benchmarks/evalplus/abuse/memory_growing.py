"""Fills memory piece by piece."""
def f(x):
    kept = []
    while True:
        kept.append("x" * 10 ** 7)
