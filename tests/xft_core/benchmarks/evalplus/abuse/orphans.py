"""Leaves processes behind outside our session, and gives a wrong answer."""
import posix
import time


def f(x):
    for _ in range(20):
        if posix.fork() == 0:
            posix.setsid()
            if posix.fork() == 0:
                time.sleep(600)
            posix._exit(0)
    return None
