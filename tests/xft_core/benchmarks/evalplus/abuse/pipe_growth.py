"""Right only if it can make a pipe hold a megabyte."""
import fcntl
import os


def f(x):
    return x + 1 if fcntl.fcntl(os.pipe()[1], 1031, 2 ** 20) else None
