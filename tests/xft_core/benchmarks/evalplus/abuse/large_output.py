"""Ten million numbers in the place of one."""
def f(x):
    return list(range(10 ** 7))
