"""Right only if it can get shared memory from /dev/zero."""
import mmap
import os


def f(x):
    return x + 1 if mmap.mmap(os.open("/dev/zero", os.O_RDWR), 2 ** 20) else None
