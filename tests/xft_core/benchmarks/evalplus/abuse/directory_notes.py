"""Right only if it is told what other processes do in a directory they share."""
import fcntl
import os
import posix


def f(x):
    fcntl.fcntl(posix.open(os.path.dirname(os.__file__), os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)
    return x + 1
