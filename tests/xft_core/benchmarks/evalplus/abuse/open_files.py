"""Opens files endlessly; right only if it gets 10,000."""
import os


def f(x):
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(10 ** 4)]
    return x + 1 if len(opened) == 10 ** 4 else None
