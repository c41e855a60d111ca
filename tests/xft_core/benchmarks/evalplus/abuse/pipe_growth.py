"""Right only if a pipe can be made to hold a megabyte."""
import fcntl
import os


def f(x):
    return x + 1 if fcntl.fcntl(os.pipe()[1], 1031, 2 ** 20) else None
