"""Right only if it can create a POSIX message queue."""
import ctypes


def f(x):
    return x + 1 if ctypes.CDLL(None).mq_open(b"/own", 0o102, 0o600, None) >= 0 else None
