"""Aborts, which would dump core."""
import os


def f(x):
    os.abort()
