"""Calls the interactive exit function."""
def f(x):
    exit()
