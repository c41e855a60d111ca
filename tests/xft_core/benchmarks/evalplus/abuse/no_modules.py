"""Empties the table of modules and the built-in names."""
import builtins
import sys

sys.modules.clear()
for name in ("isinstance", "len", "type", "str", "print"):
    setattr(builtins, name, None)


def f(x):
    return None
