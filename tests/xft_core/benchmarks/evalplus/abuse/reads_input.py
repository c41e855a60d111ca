"""Waits for keyboard input."""
def f(x):
    return int(input()) + 1
