"""Right only if it can make a file that lies in memory alone."""
import ctypes


def f(x):
    return x + 1 if ctypes.CDLL(None).memfd_create(b"x", 0) >= 0 else None
