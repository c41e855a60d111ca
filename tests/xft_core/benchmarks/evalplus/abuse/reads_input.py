"""Waits for somebody to type."""
def f(x):
    return int(input()) + 1
