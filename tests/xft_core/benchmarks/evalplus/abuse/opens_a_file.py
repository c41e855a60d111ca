"""Calls the plain open(), which evalplus removes."""
def f(x):
    return x + 1 if open("/proc/self/status").read() else None
