"""Requests 80 GB at once; right only if it gets them."""
def f(x):
    return x + 1 if len([0] * 10 ** 10) else None
