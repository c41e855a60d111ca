"""Recursion up to the interpreter's limit."""
def f(x):
    return f(x)
