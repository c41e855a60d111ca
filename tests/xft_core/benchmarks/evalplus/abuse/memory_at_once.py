"""Asks for 80 GB in one go; right only if it gets them."""
def f(x):
    return x + 1 if len([0] * 10 ** 10) else None
