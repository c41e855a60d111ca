"""A process that asks the kernel not to end it with its parent."""
import ctypes
import posix
import time


def f(x):
    if posix.fork() == 0:
        ctypes.CDLL(None).prctl(1, 0)
        posix.setsid()
        posix.close(0)
        time.sleep(600)
    return None
