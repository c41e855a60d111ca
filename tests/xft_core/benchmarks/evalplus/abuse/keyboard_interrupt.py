"""Pretends that a person stopped the run."""
def f(x):
    raise KeyboardInterrupt
