"""A number of ten million digits."""
def f(x):
    return 1 << 33 * 10 ** 6
