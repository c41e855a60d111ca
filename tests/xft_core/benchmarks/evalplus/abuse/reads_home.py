"""Right only if it finds a file in a home directory that does not belong to this Python."""
import os
import sys

OWN = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix)))


def f(x):
    for home in ("/root", "/home"):
        for directory, below, files in os.walk(home):
            below[:] = [name for name in below if not os.path.join(directory, name).startswith(OWN)]
            if files:
                return x + 1
