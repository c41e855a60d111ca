"""A wrong answer whose class name once made describing it fail."""
class array(list): pass

def f(x):
    return array([x])
