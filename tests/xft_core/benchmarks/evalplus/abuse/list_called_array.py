"""A wrong answer of a class whose name made describing it fail."""
class array(list): pass

def f(x):
    return array([x])
