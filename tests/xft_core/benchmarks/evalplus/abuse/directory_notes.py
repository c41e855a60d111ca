"""Right only if it is notified of what other processes do in a shared directory."""
import fcntl
import os
import posix


def f(x):
    fcntl.fcntl(posix.open(os.path.dirname(os.__file__), os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)
    return x + 1
