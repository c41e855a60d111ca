"""Right only if it can become root."""
import posix


def f(x):
    posix.setuid(0)
    posix.setgroups([0])
    return x + 1
