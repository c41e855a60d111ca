"""Right only if it can put a command into a terminal's input."""
import fcntl
import os


def f(x):
    _, terminal = os.openpty()
    fcntl.ioctl(terminal, 0x5412, b"x")
    return x + 1
