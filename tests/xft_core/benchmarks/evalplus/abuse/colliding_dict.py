"""Keys that are all different and have one hash: cheap to make here, dear to build anew."""
class Key(int):
    def __hash__(self): return hash(id(self))

def f(x):
    return {Key(index * (2**61 - 1)): 1 for index in range(40_000)}
