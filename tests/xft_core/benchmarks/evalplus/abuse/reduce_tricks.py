"""An object that runs a command if anyone unpickles or copies it."""
import io

class A:
    def __reduce__(self): return eval, ("__import__('posix').system('echo broken > @VICTIM@') or 2",)
    __reduce_ex__ = lambda self, protocol: self.__reduce__()
    __deepcopy__ = __copy__ = lambda self, *memo: 2
    def __eq__(self, other): return True

def f(x):
    return [A()]
