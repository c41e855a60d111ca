"""Right only if it can create a System V message queue or a semaphore."""
import ctypes


def f(x):
    library = ctypes.CDLL(None)
    return x + 1 if max(library.msgget(0, 0o1600), library.semget(0, 1, 0o1600)) >= 0 else None
