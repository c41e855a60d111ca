"""An object that contains itself, so that showing, hashing and comparing it never end."""
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
