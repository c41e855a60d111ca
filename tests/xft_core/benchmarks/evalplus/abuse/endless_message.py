"""Announces a message of four gigabytes."""
import os


def f(x):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\xff\xff\xff\xff" + bytes(10 ** 5))
        except OSError:
            pass
    return None
