"""Right only if it can create a System V memory segment."""
import ctypes


def f(x):
    return x + 1 if ctypes.CDLL(None).shmget(0, 10 ** 6, 0o1600) >= 0 else None
