"""Pretends that the user stopped the run."""
def f(x):
    raise KeyboardInterrupt
