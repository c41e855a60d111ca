"""Keys that are all different but share one hash: cheap to create here, expensive to rebuild."""
class Key(int):
    def __hash__(self): return hash(id(self))

def f(x):
    return {Key(index * (2**61 - 1)): 1 for index in range(40_000)}
