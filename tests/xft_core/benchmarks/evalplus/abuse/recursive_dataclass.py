"""An object that holds itself, and is shown, hashed and compared without end."""
import dataclasses, sys

sys.setrecursionlimit(10**9)

@dataclasses.dataclass
class Node(dict):
    child: object = None
    def __hash__(self): return hash(self.child)

def f(x):
    node = Node()
    node.child = node
    node[node.__class__] = node
    return node
