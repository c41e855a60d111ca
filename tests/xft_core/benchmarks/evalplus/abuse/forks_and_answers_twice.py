"""Comes back from one call as two processes: the second answer is there before the next input is."""
import posix


def f(x):
    posix.fork()
    return x if x == 1 else x + 1
