"""Right only if it can create an io_uring ring."""
import ctypes


def f(x):
    return x + 1 if ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0 else None
