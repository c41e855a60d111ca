"""Asks the interpreter to exit."""
import sys


def f(x):
    sys.exit(0)
