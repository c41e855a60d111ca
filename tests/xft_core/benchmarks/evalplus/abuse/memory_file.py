"""Right only if it can create a file that exists only in memory."""
import ctypes


def f(x):
    return x + 1 if ctypes.CDLL(None).memfd_create(b"x", 0) >= 0 else None
