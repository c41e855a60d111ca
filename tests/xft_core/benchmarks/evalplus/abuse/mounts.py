"""Right only if it can mount something."""
import ctypes


def f(x):
    return x + 1 if ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else None
