"""Right only if it can hold a lease, which makes the kernel ask it before anyone else may open a file."""
import fcntl
import os
import posix


def f(x):
    posix.close(posix.open("/tmp/own", os.O_CREAT | os.O_RDWR))
    for name in ("/tmp/own", os.__file__):
        try:
            fcntl.fcntl(posix.open(name, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
            return x + 1
        except PermissionError:
            pass
