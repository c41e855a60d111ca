"""Sleeps past its time limit."""
import time


def f(x):
    time.sleep(99)
    return x + 1
