"""Sleeps past its time."""
import time


def f(x):
    time.sleep(99)
    return x + 1
