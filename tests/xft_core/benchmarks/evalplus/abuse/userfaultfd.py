"""Right only if it can serve the page faults of its own memory."""
import ctypes


def f(x):
    syscall = ctypes.CDLL(None).syscall
    return x + 1 if max(syscall(number, 1) for number in (323, 282)) > 2 else None
