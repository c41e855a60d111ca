"""Code so deeply nested that reading it may end the process or take a long time."""


def f(x):
    for deep in ("(" * 10**5, "-" * 10**5 + "1", "x" + ".a" * 10**5, "[" * 90 + "]" * 90, "lambda: " * 10**4 + "1"):
        try:
            exec(deep)
        except (SyntaxError, MemoryError, RecursionError, AttributeError):
            pass
    return None
