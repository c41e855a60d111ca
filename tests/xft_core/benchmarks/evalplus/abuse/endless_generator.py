"""A generator that never ends."""
def f(x):
    while True:
        yield x + 1
