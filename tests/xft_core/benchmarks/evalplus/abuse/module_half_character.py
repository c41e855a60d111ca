"""An object whose module name is not valid text."""
class A:
    __module__ = "\ud800\0\x1b[2J"
    __qualname__ = "\u202eA" * 10_000

def f(x):
    return A()
