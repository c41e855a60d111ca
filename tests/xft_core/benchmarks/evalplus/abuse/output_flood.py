"""Writes to the real output streams endlessly."""
import os


def f(x):
    while True:
        os.write(1, b"x" * 10 ** 6)
        os.write(2, b"y" * 10 ** 6)
