"""The plain open(), which evalplus takes away."""
def f(x):
    return x + 1 if open("/proc/self/status").read() else None
