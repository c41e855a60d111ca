"""An object whose module's name is no text."""
class A:
    __module__ = "\ud800\0\x1b[2J"
    __qualname__ = "\u202eA" * 10_000

def f(x):
    return A()
