"""Asks the interpreter to end."""
import sys


def f(x):
    sys.exit(0)
