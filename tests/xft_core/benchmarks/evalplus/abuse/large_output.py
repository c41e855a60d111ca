"""Ten million numbers instead of one."""
def f(x):
    return list(range(10 ** 7))
